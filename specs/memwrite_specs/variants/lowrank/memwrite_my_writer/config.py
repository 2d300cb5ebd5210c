"""What can be set on the writer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MyConfig:
    """The size of the memory.

    Attributes:
        rank: the rank of the weights.

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
