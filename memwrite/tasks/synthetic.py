"""What synthetic tasks share: an example is drawn at random, and training goes from small ones to large ones."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from memwrite.backbones.tokenizers import ALPHABET, STRUCTURE, Tokenizer
from memwrite.errors import ConfigError
from memwrite.tasks.base import IGNORED, Example, Examples

#: What closes an answer over `ALPHABET`.
CLOSING = "!|"


@dataclass(frozen=True)
class SyntheticConfig:
    """How much is to be remembered, and how training gets there.

    Attributes:
        pairs: key-value pairs per context, or what a task has in their place.
        curriculum: numbers of pairs to pass through first, in training.
        fewest: pairs that a training context may have, each number from this one to its stage's being as likely; None for
            contexts that all have as many as their stage.
        advance: exact match from which on a stage of the curriculum is left, above 0 and at most 1.
        examples: contexts of the evaluation.

    Raises:
        ValueError: a value is out of range.
    """

    pairs: int = 8
    _: KW_ONLY
    curriculum: list[int] = field(default_factory=list)
    fewest: int | None = None
    advance: float = 0.9
    examples: int = 512

    def __post_init__(self) -> None:
        self._check_positive("pairs")
        for pairs in self.curriculum:
            if not 1 <= pairs <= self.pairs:
                raise ValueError(
                    f"curriculum must hold numbers from 1 to pairs = {self.pairs}, got {pairs}"
                )
        smallest = min([self.pairs, *self.curriculum])
        if self.fewest is not None and not 1 <= self.fewest <= smallest:
            raise ValueError(
                f"fewest must be from 1 to {smallest}, the pairs of the smallest stage, or null, got {self.fewest}"
            )
        if not 0 < self.advance <= 1:
            raise ValueError(f"advance must be above 0 and at most 1, got {self.advance}")
        if self.examples < 2:
            raise ValueError(f"examples must be at least 2, got {self.examples}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def _check_room(self, most: int, what: str) -> None:
        if self.pairs > most:
            raise ValueError(f"pairs = {self.pairs}, but there are only {most} {what}")


def evaluation_params(params: Mapping[str, Any], overridden: Collection[str]) -> dict[str, Any]:
    """Drop what sizes training alone: an evaluation is at the full number of pairs, which may be lower after an override."""
    return {name: value for name, value in params.items() if name not in ("curriculum", "fewest")}


@dataclass(frozen=True)
class Draft:
    """One example in words.

    Attributes:
        segments: the context in its segments; one for a context that has none.
        queries: questions, each with its answer.
    """

    segments: Sequence[str]
    queries: Sequence[tuple[str, str]]


C = TypeVar("C", bound=SyntheticConfig)


class SyntheticTask(ABC, Generic[C]):
    """A task whose examples are drawn at random; a `Curriculum`.

    Args:
        config: of the task.
        tokenizer: makes tokens of the text.

    Attributes:
        name: what configs call it; goes into the seed of every example.
        closing: what closes an answer in a target; no part of the answer.
        config: as given.
        advance: as in the config.
        stages: numbers of pairs that training passes through; the last one is the goal.
        starts: for each stage that training has reached, the index of its first example, rising; whoever
            trains adds to it. [0] at first.
    """

    name: ClassVar[str]
    closing: ClassVar[str] = CLOSING

    def __init__(self, config: C, tokenizer: Tokenizer) -> None:
        self.config = config
        self.advance = config.advance
        self.stages = [*config.curriculum, config.pairs]
        self.starts = [0]
        self._tokenizer = tokenizer

    @abstractmethod
    def draw(self, rng: random.Random, pairs: int) -> Draft:
        """Draw an example of that many pairs, from `rng` alone."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of one piece of a context, question or answer."""
        return self._tokenizer.encode(text)

    def compose(self, draft: Draft) -> Example:
        """Tokenize a draft: each query is a question with its closed answer behind it."""
        segments = [self.encode(text) for text in draft.segments]
        queries, labels = [], []
        for question, answer in draft.queries:
            prompt, target = self.encode(question), self.encode(answer + self.closing)
            queries.append(prompt + target)
            labels.append([IGNORED] * len(prompt) + target)
        numbers = [number for number, ids in enumerate(segments) for _ in ids]
        return Example(
            [i for ids in segments for i in ids],
            queries,
            labels,
            numbers if len(segments) > 1 else None,
        )

    def training(self, count: int, seed: int) -> Examples:
        """Return `count` examples that depend on seed, index and the stage that `starts` gives that index."""
        return _Drawn(self, f"training/{seed}", count, staged=True)

    def evaluation(self) -> Examples:
        """Return the same contexts always, at the full number of pairs, none of them drawn as in training."""
        return _Drawn(self, "evaluation", self.config.examples, staged=False)

    def fresh(self, count: int, seed: int) -> Examples:
        """Return `count` other contexts like those of the evaluation."""
        return _Drawn(self, f"fresh/{seed}", count, staged=False)


class CharacterTask(SyntheticTask[C]):
    """A synthetic task over `ALPHABET` and `STRUCTURE`, each character a token.

    Raises:
        ConfigError: the tokenizer does not make one token of each character, another one of each.
    """

    def __init__(self, config: C, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self._ids = _character_ids(self.name, tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return one id for each character, which must be of `ALPHABET` or `STRUCTURE`."""
        return [self._ids[character] for character in text]


@dataclass(frozen=True)
class _Drawn:
    task: SyntheticTask[Any]
    key: str
    count: int
    staged: bool

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"example {index} of {self.count}")
        task = self.task
        pairs, fewest = task.config.pairs, task.config.fewest
        rng = random.Random(f"{task.name}/{self.key}/{index}")
        if self.staged:
            pairs = task.stages[bisect(task.starts, index) - 1]
            pairs = pairs if fewest is None else rng.randint(fewest, pairs)
        return task.compose(task.draw(rng, pairs))


def _character_ids(task: str, tokenizer: Tokenizer) -> Mapping[str, int]:
    ids: dict[str, int] = {}
    for character in ALPHABET + STRUCTURE:
        token_ids = tokenizer.encode(character)
        if len(token_ids) != 1 or token_ids[0] in ids.values():
            what = (
                f"{len(token_ids)} tokens"
                if len(token_ids) != 1
                else "an earlier character's token"
            )
            raise ConfigError(
                f"the tokenizer makes {what} of '{character}', and task {task} needs one for each "
                f"character: set backbone.tokenizer=characters"
            )
        ids[character] = token_ids[0]
    return ids
