"""Multi-query associative recall (Zoology, arXiv 2312.04927): single tokens, each a key or a value."""

from __future__ import annotations

import random
from dataclasses import dataclass

from memwrite.backbones.tokenizers import ALPHABET
from memwrite.tasks.synthetic import CharacterTask, Draft, SyntheticConfig

#: One half of the tokens are keys, the other half values, as in the paper.
KEYS, VALUES = ALPHABET[: len(ALPHABET) // 2], ALPHABET[len(ALPHABET) // 2 :]


@dataclass(frozen=True)
class MqarConfig(SyntheticConfig):
    """How many pairs; other attributes as in `SyntheticConfig`.

    Attributes:
        queries: keys that are queried, at random; None for all.

    Raises:
        ValueError: a value is out of range.
    """

    queries: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_room(len(KEYS), "keys of one token")
        if self.queries is not None and not 1 <= self.queries <= self.pairs:
            raise ValueError(
                f"queries must be from 1 to pairs = {self.pairs}, or null for all, got {self.queries}"
            )


class MqarTask(CharacterTask[MqarConfig]):
    """Contexts `k1v1k2v2…` and queries `k`; see `SyntheticTask`.

    In the paper the queries follow the pairs in one sequence, at gaps that a power law gives. Here each reads the state by
    itself, so that there are no gaps.
    """

    name = "mqar"

    def draw(self, rng: random.Random, pairs: int) -> Draft:
        """Draw pairs; a stage with fewer pairs than `queries` queries all of them."""
        keys, values = rng.sample(KEYS, pairs), rng.choices(VALUES, k=pairs)
        drawn = list(zip(keys, values, strict=True))
        queries = self.config.queries
        chosen = drawn if queries is None else rng.sample(drawn, min(queries, pairs))
        return Draft(["".join(key + value for key, value in drawn)], chosen)
