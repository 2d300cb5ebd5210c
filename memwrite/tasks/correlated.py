"""Key-value retrieval with keys that are nearly the same: what blurs them cannot answer (arXiv 2102.11174, section 4)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from memwrite.tasks.kv import PairsConfig, context_text, pairs_of, question_text, random_text
from memwrite.tasks.synthetic import CharacterTask, Draft
from memwrite.tokenizer import ALPHABET


@dataclass(frozen=True)
class CorrelatedConfig(PairsConfig):
    """How many pairs, and how much their keys share; other attributes as in `PairsConfig`.

    Attributes:
        shared: first characters that all keys of a context have in common; below `key_length`.

    Raises:
        ValueError: a value is out of range.
    """

    key_length: int = 4
    shared: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shared < self.key_length:
            raise ValueError(
                f"shared must be at least 0 and below key_length = {self.key_length}, got {self.shared}"
            )
        own = self.key_length - self.shared
        self._check_room(len(ALPHABET) ** own, f"keys that differ in {own} characters")


class CorrelatedTask(CharacterTask[CorrelatedConfig]):
    """Contexts and queries as in kv-retrieval; see `SyntheticTask`."""

    name = "correlated-keys"

    def draw(self, chance: random.Random, pairs: int) -> Draft:
        """Every context has a beginning of its keys of its own."""
        config = self.config
        prefix = random_text(chance, config.shared)
        ends = pairs_of(chance, pairs, config.key_length - config.shared, config.value_length)
        drawn = [(prefix + end, value) for end, value in ends]
        return Draft([context_text(drawn)], [(question_text(key), value) for key, value in drawn])
