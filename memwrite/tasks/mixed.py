"""Questions of several kinds of files, learnt together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from memwrite.backbones.tokenizers import Tokenizer
from memwrite.tasks.babi import BabiConfig
from memwrite.tasks.base import Example, Examples
from memwrite.tasks.questions import QuestionsConfig, QuestionsTask
from memwrite.tasks.squad import SquadConfig


@dataclass(frozen=True)
class MixedConfig:
    """What is learnt together.

    Attributes:
        squad: the parameters of the task `squad`; None for none of it.
        babi: those of the task `babi`, likewise.
        shares: how often a part has its turn while the others have theirs; 1 where it is not named.
        bucket: training examples of one turn; the batch size spares padding, where the parts differ in length.

    Raises:
        ValueError: there is no part, or a value is out of range.
    """

    squad: SquadConfig | None = None
    babi: BabiConfig | None = None
    shares: dict[str, int] = field(default_factory=dict)
    bucket: int = 1

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("there is nothing to mix: give squad or babi, each with its files")
        for name, share in self.shares.items():
            if name not in self.parts or share < 1:
                raise ValueError(
                    f"shares are counts from 1 on of {', '.join(self.parts)}, got {name}: {share}"
                )
        if self.bucket < 1:
            raise ValueError(f"bucket must be at least 1, got {self.bucket}")

    @property
    def parts(self) -> dict[str, QuestionsConfig]:
        """Return the parts that there are, by name."""
        given: dict[str, QuestionsConfig | None] = {"squad": self.squad, "babi": self.babi}
        return {name: part for name, part in given.items() if part is not None}


class MixedTask:
    """Parts that have their turns in a fixed order, each as often as its share says, spread evenly.

    Args:
        config: see `MixedConfig`.
        tokenizer: makes tokens of the texts.

    Raises:
        ConfigError, InputError: a file cannot be read or is damaged.
    """

    def __init__(self, config: MixedConfig, tokenizer: Tokenizer) -> None:
        self._bucket = config.bucket
        self._parts = [QuestionsTask(part, tokenizer) for part in config.parts.values()]
        self._turns = turns([config.shares.get(name, 1) for name in config.parts])

    def training(self, count: int, seed: int) -> Examples:
        """Return `count` examples, turn by turn; raises as the parts do."""
        return _Turns(
            [part.training(count, seed) for part in self._parts], self._turns, self._bucket, count
        )

    def evaluation(self) -> Examples:
        """Return the held-out examples of every part, one part after the other."""
        each = (part.evaluation() for part in self._parts)
        return [*chain.from_iterable((e[i] for i in range(len(e))) for e in each)]

    def fresh(self, count: int, seed: int) -> Examples:
        """Return `count` other held-out examples, in turns; raises as the parts do."""
        return _Turns([part.fresh(count, seed) for part in self._parts], self._turns, 1, count)


def turns(shares: Sequence[int]) -> tuple[int, ...]:
    """Return whose turn it is, until every part has had as many as its share, each part's spread evenly."""
    places = ((2 * turn + 1) / share for share in shares for turn in range(share))
    owners = (part for part, share in enumerate(shares) for _ in range(share))
    return tuple(part for _, part in sorted(zip(places, owners, strict=True)))


@dataclass(frozen=True)
class _Turns:
    parts: Sequence[Examples]
    turns: tuple[int, ...]
    bucket: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"example {index} of {self.count}")
        turn, place = divmod(index, self.bucket)
        rounds, turn = divmod(turn, len(self.turns))
        part = self.turns[turn]
        had = rounds * self.turns.count(part) + self.turns[:turn].count(part)
        return self.parts[part][had * self.bucket + place]
