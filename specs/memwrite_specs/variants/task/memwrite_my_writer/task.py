"""The task: random words are written, and the first of them is asked for."""

import random

from memwrite.backbones.tokenizers import ALPHABET
from memwrite.tasks.synthetic import CharacterTask, Draft
from memwrite_my_writer.config import MyConfig


class MyTask(CharacterTask[MyConfig]):
    """Contexts of as many words as `pairs`, each closed by "|", and the one query "?!:"."""

    name = "my-writer"

    def draw(self, rng: random.Random, pairs: int) -> Draft:
        """Draw the words, and ask for the first."""
        words = ["".join(rng.choices(ALPHABET, k=self.config.length)) for _ in range(pairs)]
        return Draft(["".join(f"{word}|" for word in words)], [("?!:", words[0])])
