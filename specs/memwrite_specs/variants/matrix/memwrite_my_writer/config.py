"""What can be set on the writer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MyConfig:
    """The size of the memory.

    Attributes:
        width: the width of keys and values.

    Raises:
        ValueError: a value is out of range.
    """

    width: int = 8

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
