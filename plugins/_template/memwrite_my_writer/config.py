"""What can be set on the writer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MyConfig:
    """How much is kept.

    Attributes:
        slots: vectors of the memory.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 8

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")
