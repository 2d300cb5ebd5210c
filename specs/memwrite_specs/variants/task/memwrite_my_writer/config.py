"""What can be set on the task."""

from dataclasses import dataclass

from memwrite.tasks.synthetic import SyntheticConfig


@dataclass(frozen=True)
class MyConfig(SyntheticConfig):
    """The sizes of the contexts; other attributes as in `SyntheticConfig`, whose `pairs` are words here.

    Attributes:
        length: characters of a word.

    Raises:
        ValueError: a value is out of range.
    """

    length: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
