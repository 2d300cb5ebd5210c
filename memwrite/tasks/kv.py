"""Key-value retrieval in the format of GradMem (arXiv 2603.13875): every pair is asked for."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memwrite.errors import ConfigError
from memwrite.tasks.base import IGNORED, Example, Examples
from memwrite.tokenizer import ALPHABET, STRUCTURE, Codec

#: What closes a value in a target; no part of the value.
CLOSING = "!|"


@dataclass(frozen=True)
class KvConfig:
    """How much is to be remembered, and how training gets there.

    Attributes:
        pairs: key-value pairs per context, which is as many queries.
        key_length: characters per key, of `ALPHABET`.
        value_length: characters per value.
        curriculum: numbers of pairs to pass through first, in training.
        advance: exact match from which on a stage of the curriculum is left, above 0 and at most 1.
        examples: contexts of the evaluation.

    Raises:
        ValueError: a value is out of range.
    """

    pairs: int = 8
    key_length: int = 2
    value_length: int = 2
    curriculum: list[int] = field(default_factory=list)
    advance: float = 0.9
    examples: int = 512

    def __post_init__(self) -> None:
        for name in ("pairs", "key_length", "value_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        keys = len(ALPHABET) ** self.key_length
        if self.pairs > keys:
            raise ValueError(
                f"pairs = {self.pairs}, but there are only {keys} keys of length {self.key_length}"
            )
        for pairs in self.curriculum:
            if not 1 <= pairs <= self.pairs:
                raise ValueError(
                    f"curriculum must hold numbers from 1 to pairs = {self.pairs}, got {pairs}"
                )
        if not 0 < self.advance <= 1:
            raise ValueError(f"advance must be above 0 and at most 1, got {self.advance}")
        if self.examples < 2:
            raise ValueError(f"examples must be at least 2, got {self.examples}")


def pairs_of(
    chance: random.Random, pairs: int, key_length: int, value_length: int
) -> list[tuple[str, str]]:
    """Random keys and values over `ALPHABET`: the keys all different, the values independent.

    Args:
        chance: where the randomness comes from.
        pairs: from 1 to the number of keys of that length.
        key_length: at least 1.
        value_length: at least 1.
    """
    keys: dict[str, None] = {}
    while len(keys) < pairs:
        keys["".join(chance.choices(ALPHABET, k=key_length))] = None
    return [(key, "".join(chance.choices(ALPHABET, k=value_length))) for key in keys]


def context_text(pairs: Sequence[tuple[str, str]]) -> str:
    """`!k1:v1!!k2:v2!…|`."""
    return "".join(f"!{key}:{value}!" for key, value in pairs) + "|"


def question_text(key: str) -> str:
    """`?!k:`."""
    return f"?!{key}:"


class KvTask:
    """Contexts of key-value pairs, each asked for all of its pairs; a `Curriculum`.

    Args:
        config: see `KvConfig`.
        codec: must make one token of each character.

    Attributes:
        config: as given.
        advance: as in the config.
        stages: numbers of pairs that training passes through; the last one is the goal.
        starts: for each stage that training has reached, the index of its first example, rising; whoever
            trains adds to it. [0] at first.

    Raises:
        ConfigError: the tokenizer does not make one token of each character.
    """

    def __init__(self, config: KvConfig, codec: Codec) -> None:
        self.config = config
        self.advance = config.advance
        self.stages = [*config.curriculum, config.pairs]
        self.starts = [0]
        self._ids = _character_ids(codec)

    def training(self, count: int, seed: int) -> Examples:
        """`count` examples that depend on seed, index and the stage that `starts` gives that index."""
        return _KvExamples(self, f"training/{seed}", count, staged=True)

    def evaluation(self) -> Examples:
        """The same contexts always, at the full number of pairs, none of them drawn as in training."""
        return _KvExamples(self, "evaluation", self.config.examples, staged=False)

    def fresh(self, count: int, seed: int) -> Examples:
        """`count` other contexts like those of the evaluation."""
        return _KvExamples(self, f"fresh/{seed}", count, staged=False)

    def example(self, pairs: Sequence[tuple[str, str]]) -> Example:
        """The context of these pairs with its queries, one for each of them in order."""
        queries, labels = [], []
        for key, value in pairs:
            question, answer = self.encode(question_text(key)), self.encode(value + CLOSING)
            queries.append(question + answer)
            labels.append([IGNORED] * len(question) + answer)
        return Example(self.encode(context_text(pairs)), queries, labels)

    def encode(self, text: str) -> list[int]:
        """One id for each character, which must be of `ALPHABET` or `STRUCTURE`."""
        return [self._ids[character] for character in text]


@dataclass(frozen=True)
class _KvExamples:
    task: KvTask
    key: str
    count: int
    staged: bool

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"example {index} of {self.count}")
        config, stages = self.task.config, self.task.stages
        pairs = stages[bisect(self.task.starts, index) - 1] if self.staged else config.pairs
        chance = random.Random(f"kv-retrieval/{self.key}/{index}")
        drawn = pairs_of(chance, pairs, config.key_length, config.value_length)
        return self.task.example(drawn)


def _character_ids(codec: Codec) -> Mapping[str, int]:
    ids = {character: codec.encode(character) for character in ALPHABET + STRUCTURE}
    for character, made in ids.items():
        if len(made) != 1:
            raise ConfigError(
                f"the tokenizer makes {len(made)} tokens of '{character}', and task kv-retrieval needs one "
                f"for each character: set backbone.tokenizer=characters"
            )
    return {character: made[0] for character, made in ids.items()}
