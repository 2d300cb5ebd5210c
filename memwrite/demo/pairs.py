"""The demo's key-value part: pairs are written, dropped, and asked for by key, from the state file alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.config import load_config, part_config
from memwrite.errors import ConfigError, InputError
from memwrite.memory import Memory
from memwrite.plugins import registry
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
    """What one memory answered, and the size of the state that it answered from.

    Attributes:
        name: of the memory, for people.
        answers: one for each pair, in order.
        state_bytes: measured from the tensors.
    """

    name: str
    answers: list[Answer]
    state_bytes: int

    @property
    def right(self) -> int:
        """How many values came back."""
        return sum(answer.answer == answer.value for answer in self.answers)


def pair_lines(results: Sequence[PairResults]) -> list[str]:
    """A table for people: a row for each pair, a column for each memory, wrong values in brackets."""
    asked = results[0].answers
    columns = [
        ["", *(f"{a.key} : {a.value}" for a in asked), "right", "bytes"],
        *(_column(result) for result in results),
    ]
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return ["   ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _column(result: PairResults) -> list[str]:
    shown = [a.answer if a.answer == a.value else f"[{a.answer}]" for a in result.answers]
    right = f"{result.right} of {len(result.answers)}"
    return [result.name, *shown, right, f"{result.state_bytes:,}"]


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


def parse_memory(word: str) -> tuple[Path, int | None]:
    """`RUN` or `RUN:K` as a run folder and a number of inner steps, None for the run's own."""
    run, colon, steps = word.rpartition(":")
    return (Path(run), int(steps)) if colon and steps.isdigit() else (Path(word), None)


def recall_pairs(
    run: Path, steps: int | None, pairs: Sequence[tuple[str, str]], folder: Path
) -> PairResults:
    """Write `pairs` in one context, save the state, and ask a memory opened from the file for every key.

    Args:
        run: run folder of a memory trained on key-value retrieval.
        steps: K, in place of the run's own; only for writers that have it.
        pairs: keys and values, of the lengths that it was trained on.
        folder: where the state file goes.

    Raises:
        ConfigError: the run was trained on another task, or has no such number of steps.
        InputError: a key or value has another length, or a character that the model does not know.
    """
    memory = Memory.from_config(run, _overrides(run, steps))
    task, writer = memory.config.task, memory.config.writer
    if task is None or task.name != "kv-retrieval":
        raise ConfigError(f"'{run}' was not trained on key-value retrieval")
    config = part_config(KvConfig, task.params, "task.params")
    _check_lengths(config, pairs)
    context = memory.backbone.tokenizer.encode(context_text(pairs))
    memory.save(memory.write(Tokens.from_rows([context])).state, folder / STATE_FILE)
    reader, state = Memory.load(folder / STATE_FILE)
    length = config.value_length + len(CLOSING)
    answers = [
        Answer(key, value, _value(reader.ask(state, question_text(key), max_new_tokens=length)))
        for key, value in pairs
    ]
    count = writer.params.get(registry().writer(writer.name).steps or "")
    name = writer.name if count is None else f"{writer.name}, K={count}"
    return PairResults(name, answers, state.nbytes)


def _overrides(run: Path, steps: int | None) -> list[str]:
    """Return the override that sets the number of steps, where one is given."""
    if steps is None:
        return []
    plugin = registry().writer(load_config(run / CONFIG_FILE).writer.name)
    if plugin.steps is None:
        raise ConfigError(f"the writer of '{run}' takes no steps: give '{run}' without ':{steps}'")
    return [f"writer.params.{plugin.steps}={steps}"]


def _check_lengths(config: KvConfig, pairs: Sequence[tuple[str, str]]) -> None:
    for key, value in pairs:
        if (len(key), len(value)) != (config.key_length, config.value_length):
            raise InputError(
                f"the pair '{key}:{value}' should have a key of {config.key_length} characters and a value of "
                f"{config.value_length}, as the model has learnt them"
            )


def _value(answer: str) -> str:
    return answer.partition(CLOSING[0])[0]
