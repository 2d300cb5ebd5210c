"""Copying a random string (Neural Turing Machines, arXiv 1410.5401; Repeat After Me, arXiv 2402.01032)."""

from __future__ import annotations

import random

from memwrite.tasks.key_value import question_text, random_text
from memwrite.tasks.synthetic import CharacterTask, Draft, SyntheticConfig


class CopyingTask(CharacterTask[SyntheticConfig]):
    """Contexts `s|` with a random string `s` of as many characters as `pairs`, and the one query `?!:`.

    See `SyntheticTask`.
    """

    name = "copying"

    def draw(self, rng: random.Random, pairs: int) -> Draft:
        """Draw one string, queried once."""
        text = random_text(rng, pairs)
        return Draft([f"{text}|"], [(question_text(""), text)])
