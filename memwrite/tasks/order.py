"""The order of items: what came after one, or before it, or at a place (Neural Turing Machines, arXiv 1410.5401, 4.3)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from memwrite.backbones.tokenizers import ALPHABET
from memwrite.errors import did_you_mean
from memwrite.tasks.key_value import keys_of, question_text
from memwrite.tasks.synthetic import CharacterTask, Draft, SyntheticConfig

ASKED = ("after", "before", "place")


@dataclass(frozen=True)
class OrderConfig(SyntheticConfig):
    """How many items, and what is asked; other attributes as in `SyntheticConfig`.

    Attributes:
        pairs: queries per context; as many items for "place", one more for the others.
        item_length: characters per item, of `ALPHABET`.
        asked: "after" (the item behind a given one), "before", or "place" (the item of a number, from 1).

    Raises:
        ValueError: a value is out of range.
    """

    item_length: int = 2
    asked: str = "after"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("item_length")
        if self.asked not in ASKED:
            raise ValueError(f"asked = '{self.asked}': {did_you_mean(self.asked, ASKED)}")
        most = len(ALPHABET) ** self.item_length - (self.asked != "place")
        self._check_room(most, f"queries that items of length {self.item_length} have answers to")


class OrderTask(CharacterTask[OrderConfig]):
    """Contexts `!a!!b!!c!…|` of different items, and queries `?!b:` or `?!2:`; see `SyntheticTask`."""

    name = "order"

    def draw(self, rng: random.Random, pairs: int) -> Draft:
        """Draw items; every one that has a neighbour on that side, or every place, is queried."""
        relation = self.config.asked
        items = keys_of(rng, pairs + (relation != "place"), self.config.item_length)
        answers = {
            "after": list(pairwise(items)),
            "before": [(later, item) for item, later in pairwise(items)],
            "place": [(str(number), item) for number, item in enumerate(items, 1)],
        }[relation]
        context = "".join(f"!{item}!" for item in items) + "|"
        return Draft([context], [(question_text(item), answer) for item, answer in answers])
