"""What can be set on the writer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MyConfig:
    """The size of the memory.

    Attributes:
        slots: the number of vectors.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 8

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")
