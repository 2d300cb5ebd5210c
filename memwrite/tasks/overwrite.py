"""Keys that come several times, the last value wins (after Schlag et al. 2021, arXiv 2102.11174, setting 2)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from memwrite.tasks.key_value import PairsConfig, context_text, keys_of, question_text, random_text
from memwrite.tasks.synthetic import CharacterTask, Draft


@dataclass(frozen=True)
class OverwriteConfig(PairsConfig):
    """How many keys, and how often each comes; other attributes as in `PairsConfig`.

    Attributes:
        pairs: different keys per context.
        writes: values of each key, one after another.

    Raises:
        ValueError: a value is out of range.
    """

    writes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("writes")


class OverwriteTask(CharacterTask[OverwriteConfig]):
    """Contexts as in kv-retrieval with `pairs` times `writes` pairs in random order; see `SyntheticTask`."""

    name = "overwrite"

    def draw(self, rng: random.Random, pairs: int) -> Draft:
        """Draw all writes in random order; every key is queried once."""
        config = self.config
        keys = keys_of(rng, pairs, config.key_length)
        written = [(key, random_text(rng, config.value_length)) for key in keys * config.writes]
        rng.shuffle(written)
        last = dict(written)
        return Draft([context_text(written)], [(question_text(key), last[key]) for key in keys])
