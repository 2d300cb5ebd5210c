"""Key-value retrieval in the format of GradMem (arXiv 2603.13875): every key is queried."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat

from memwrite.backbones.tokenizers import ALPHABET
from memwrite.tasks.base import Example
from memwrite.tasks.synthetic import CharacterTask, Draft, SyntheticConfig


@dataclass(frozen=True)
class PairsConfig(SyntheticConfig):
    """Pairs of strings over `ALPHABET`; other attributes as in `SyntheticConfig`.

    Attributes:
        key_length: characters per key.
        value_length: characters per value.

    Raises:
        ValueError: a value is out of range.
    """

    key_length: int = 2
    value_length: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("key_length", "value_length")
        self._check_room(len(ALPHABET) ** self.key_length, f"keys of length {self.key_length}")


@dataclass(frozen=True)
class KeyValueConfig(PairsConfig):
    """How many pairs of which size, and what surrounds them; other attributes as in `PairsConfig`.

    Attributes:
        noise: random characters of `ALPHABET` before each pair. (GradMem's own contexts have them at random places.)
        segments: of the context, each with its share of the pairs, in order, and closed by `|`.

    Raises:
        ValueError: a value is out of range.
    """

    noise: int = 0
    segments: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("segments")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")
        fewest = self.fewest or min([self.pairs, *self.curriculum])
        if self.segments > fewest:
            raise ValueError(
                f"segments = {self.segments}, but there are only {fewest} pairs to share among them"
            )


def random_text(rng: random.Random, length: int, letters: str = ALPHABET) -> str:
    """Return `length` characters of `letters`, independent and uniform."""
    return "".join(rng.choices(letters, k=length))


def keys_of(rng: random.Random, count: int, length: int, letters: str = ALPHABET) -> list[str]:
    """Return `count` different keys of `length` characters of `letters`, of which there must be as many."""
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[random_text(rng, length, letters)] = None
    return list(keys)


def pairs_of(
    rng: random.Random, pairs: int, key_length: int, value_length: int
) -> list[tuple[str, str]]:
    """Draw keys and values over `ALPHABET`: the keys all different, the values independent.

    Args:
        rng: the source of randomness.
        pairs: from 1 to the number of keys of that length.
        key_length: at least 1.
        value_length: at least 1.
    """
    keys = keys_of(rng, pairs, key_length)
    return [(key, random_text(rng, value_length)) for key in keys]


def context_text(pairs: Iterable[tuple[str, str]], noise: Iterable[str] = repeat("")) -> str:
    """Return `!k1:v1!!k2:v2!…|`, with a piece of `noise` before each pair."""
    parts = zip(pairs, noise, strict=False)
    return "".join(f"{filler}!{key}:{value}!" for (key, value), filler in parts) + "|"


def question_text(key: str) -> str:
    """Return the question for a key, `?!k:`."""
    return f"?!{key}:"


class KeyValueTask(CharacterTask[KeyValueConfig]):
    """Contexts of key-value pairs, each asked for all of its pairs; see `SyntheticTask`."""

    name = "kv-retrieval"

    def draw(self, rng: random.Random, pairs: int) -> Draft:
        """Draw pairs, then the noise, so that the pairs are the same with it and without."""
        config = self.config
        drawn = pairs_of(rng, pairs, config.key_length, config.value_length)
        return self._draft(drawn, [random_text(rng, config.noise) for _ in drawn])

    def example(self, pairs: Sequence[tuple[str, str]]) -> Example:
        """Return the context of these pairs, without noise, with one query for each of them in order."""
        return self.compose(self._draft(pairs, [""] * len(pairs)))

    def _draft(self, pairs: Sequence[tuple[str, str]], noise: Sequence[str]) -> Draft:
        """Draft the context of these pairs, with a piece of noise before each."""
        count = self.config.segments
        cuts = [number * len(pairs) // count for number in range(count + 1)]
        return Draft(
            [context_text(pairs[a:b], noise[a:b]) for a, b in pairwise(cuts)],
            [(question_text(key), value) for key, value in pairs],
        )
