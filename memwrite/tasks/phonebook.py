"""A phone book in words, asked by name (Repeat After Me, arXiv 2402.01032; GradMem, arXiv 2603.13875); any tokenizer."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import product

from memwrite.backbones.tokenizers import Tokenizer
from memwrite.errors import ConfigError, InputError
from memwrite.tasks.synthetic import Draft, SyntheticConfig, SyntheticTask

FIRST = (
    "Ada", "Alan", "Alice", "Amir", "Anna", "Arthur", "Beth", "Boris", "Carla", "Chen", "Clara", "Daniel", "David", "Diana",
    "Edgar", "Elena", "Emma", "Erik", "Eva", "Farid", "Fiona", "Frank", "George", "Grace", "Hannah", "Harold", "Helen",
    "Hugo", "Ida", "Igor", "Irene", "Ivan", "Jack", "Jane", "John", "Julia", "Karim", "Kate", "Laura", "Leo", "Linda",
    "Lucas", "Maria", "Mark", "Mary", "Max", "Mina", "Nadia", "Nina", "Noah", "Olga", "Oscar", "Paul", "Peter", "Rosa",
    "Ruth", "Sam", "Sara", "Simon", "Sophie", "Thomas", "Tina", "Victor", "Yuki",
)  # fmt: skip
LAST = (
    "Adams", "Archer", "Baker", "Barnes", "Bell", "Black", "Brook", "Brown", "Carter", "Clark", "Cole", "Cook", "Cooper",
    "Cross", "Dale", "Dean", "Drake", "Evans", "Field", "Fisher", "Ford", "Foster", "Fox", "Frost", "Gray", "Green", "Hall",
    "Hart", "Hill", "Hunt", "Irving", "Jones", "Kent", "King", "Lake", "Lane", "Lee", "Long", "Marsh", "Mason", "Miller",
    "Moore", "Newton", "North", "Page", "Park", "Price", "Quinn", "Reed", "Rivers", "Rose", "Shaw", "Smith", "Stone",
    "Taylor", "Turner", "Vance", "Walker", "Ward", "Waters", "West", "White", "Wood", "Young",
)  # fmt: skip
NAMES = [f"{first} {last}" for first, last in product(FIRST, LAST)]


@dataclass(frozen=True)
class PhonebookConfig(SyntheticConfig):
    """As `SyntheticConfig`, `pairs` being the entries of a phone book.

    Raises:
        ValueError: a value is out of range.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_room(len(NAMES), "names")


class PhonebookTask(SyntheticTask[PhonebookConfig]):
    """Contexts of lines such as "Mary Stone: 555-0173", and queries "Mary Stone:"; see `SyntheticTask`.

    Raises:
        ConfigError: the tokenizer loses something of such a text, as one that knows only words does.
    """

    name = "phonebook"
    closing = "\n"

    def __init__(self, config: PhonebookConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        if not _preserves(tokenizer):
            raise ConfigError(
                "the tokenizer does not keep names, numbers and lines as they are, as task phonebook needs: "
                "set backbone.tokenizer=bytes"
            )

    def draw(self, rng: random.Random, pairs: int) -> Draft:
        """Draw entries; the names are all different, the numbers independent."""
        entries = [
            (f"{name}:", f" {rng.randrange(1000):03}-{rng.randrange(10000):04}")
            for name in rng.sample(NAMES, pairs)
        ]
        return Draft(
            ["".join(f"{name}{number}{self.closing}" for name, number in entries)], entries
        )


def _preserves(tokenizer: Tokenizer) -> bool:
    """Say whether every character of a phone book survives tokenizing, apart from blanks at the start."""
    text = "A" + "".join(sorted({*"".join(NAMES), *string.digits, *":- \n"}))
    try:
        return tokenizer.decode(tokenizer.encode(text)).strip() == text
    except InputError:
        return False
