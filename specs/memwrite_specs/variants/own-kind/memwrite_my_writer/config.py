"""What can be set on the writer; the reader has no parameters."""

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


@dataclass(frozen=True)
class NoParams:
    """The parameters of the reader: none."""
