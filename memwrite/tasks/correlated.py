"""Key-value retrieval with keys that are nearly the same: what blurs them cannot answer (arXiv 2102.11174, section 4)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from memwrite.backbones.tokenizers import ALPHABET
from memwrite.tasks.key_value import PairsConfig, context_text, keys_of, question_text, random_text
from memwrite.tasks.synthetic import CharacterTask, Draft


@dataclass(frozen=True)
class CorrelatedConfig(PairsConfig):
    """How many pairs, and how much their keys share; other attributes as in `PairsConfig`.

    Attributes:
        shared: first characters that all keys of a context have in common; below `key_length`.
        letters: characters that the rest of a context's keys is made of, others in each; None for any.

    Raises:
        ValueError: a value is out of range.
    """

    key_length: int = 4
    shared: int = 3
    letters: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shared < self.key_length:
            raise ValueError(
                f"shared must be at least 0 and below key_length = {self.key_length}, got {self.shared}"
            )
        letters = len(ALPHABET) if self.letters is None else self.letters
        if not 1 <= letters <= len(ALPHABET):
            raise ValueError(f"letters must be from 1 to {len(ALPHABET)}, got {letters}")
        own = self.key_length - self.shared
        self._check_room(letters**own, f"keys that differ in {own} characters")


class CorrelatedTask(CharacterTask[CorrelatedConfig]):
    """Contexts and queries as in kv-retrieval; see `SyntheticTask`."""

    name = "correlated-keys"

    def draw(self, rng: random.Random, pairs: int) -> Draft:
        """Draw a beginning that all keys of the context share, the letters of their ends, and the values."""
        config = self.config
        prefix = random_text(rng, config.shared)
        letters = ALPHABET
        if config.letters is not None:
            letters = "".join(rng.sample(ALPHABET, config.letters))
        ends = keys_of(rng, pairs, config.key_length - config.shared, letters)
        drawn = [(prefix + end, random_text(rng, config.value_length)) for end in ends]
        return Draft([context_text(drawn)], [(question_text(key), value) for key, value in drawn])
