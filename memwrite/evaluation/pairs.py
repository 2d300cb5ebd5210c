"""The demo's key-value part: pairs are written, dropped, and asked for by key, from the state file alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memwrite.config import part_config
from memwrite.errors import ConfigError, InputError
from memwrite.memory import Memory
from memwrite.state import Tokens
from memwrite.tasks.kv import KvConfig, context_text, question_text
from memwrite.tasks.synthetic import CLOSING

STATE_FILE = "pairs.safetensors"
#: What the demo writes if nobody gives it anything.
PAIRS = (
    ("Ah", "42"), ("Ma", "7q"), ("Is", "he"), ("Pe", "Qd"), ("Qu", "eg"), ("St", "0x"), ("Fl", "k9"), ("Pi", "Zz"),
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One key, the value that was written for it, and the one that came back."""

    key: str
    value: str
    answer: str


@dataclass(frozen=True)
class PairResults:
    """All answers, and the size of the state that they came from."""

    answers: list[Answer]
    state_bytes: int

    @property
    def right(self) -> int:
        """How many values came back."""
        return sum(answer.answer == answer.value for answer in self.answers)

    def lines(self) -> list[str]:
        """A line for each key, and one that sums up."""
        marks = [
            f"  {a.key} -> {a.answer}"
            + ("" if a.answer == a.value else f"   (should be {a.value})")
            for a in self.answers
        ]
        total = f"{self.right} of {len(self.answers)} values right, from {self.state_bytes:,} bytes of state"
        return [*marks, total]


def parse_pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """`key:value` words as pairs.

    Raises:
        InputError: a word is not of that form, or a key comes twice.
    """
    pairs: dict[str, str] = {}
    for word in words:
        key, colon, value = word.partition(":")
        if not (key and colon and value) or key in pairs:
            raise InputError(f"the pair '{word}' should be KEY:VALUE, each key once")
        pairs[key] = value
    return list(pairs.items())


def recall_pairs(run: Path, pairs: Sequence[tuple[str, str]], folder: Path) -> PairResults:
    """Write `pairs` in one context, save the state, and ask a memory opened from the file for every key.

    Args:
        run: run folder of a memory trained on key-value retrieval.
        pairs: keys and values, of the lengths that it was trained on.
        folder: where the state file goes.

    Raises:
        ConfigError: the run was trained on another task.
        InputError: a key or value has another length, or a character that the model does not know.
    """
    memory = Memory.from_config(run)
    task = memory.config.task
    if task is None or task.name != "kv-retrieval":
        raise ConfigError(f"'{run}' was not trained on key-value retrieval")
    config = part_config(KvConfig, task.params, "task.params")
    for key, value in pairs:
        if (len(key), len(value)) != (config.key_length, config.value_length):
            raise InputError(
                f"the pair '{key}:{value}' should have a key of {config.key_length} characters and a value of "
                f"{config.value_length}, as the model has learnt them"
            )
    context = memory.backbone.codec.encode(context_text(pairs))
    memory.save(memory.write(Tokens.from_rows([context])).state, folder / STATE_FILE)
    reader, state = Memory.load(folder / STATE_FILE)
    length = config.value_length + len(CLOSING)
    answers = [
        Answer(key, value, _value(reader.ask(state, question_text(key), max_new_tokens=length)))
        for key, value in pairs
    ]
    return PairResults(answers, state.nbytes)


def _value(answer: str) -> str:
    return answer.partition(CLOSING[0])[0]
