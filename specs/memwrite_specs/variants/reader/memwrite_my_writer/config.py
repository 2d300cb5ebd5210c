"""What can be set on the reader."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MyConfig:
    """How strongly the memory is read.

    Attributes:
        scale: the factor of every dimension before training.

    Raises:
        ValueError: a value is out of range.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")
