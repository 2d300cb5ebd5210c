"""One cell of the grid: a run at one N, one K and one seed of fresh contexts, measured once and kept as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memwrite.config import part_config, to_dict
from memwrite.errors import ConfigError, DivergenceError
from memwrite.evaluation.key_value import KeyValueEvaluation, evaluate
from memwrite.evaluation.machine import machine
from memwrite.evaluation.scores import Scores
from memwrite.memory import Memory
from memwrite.plugins import registry
from memwrite.tasks.base import Example
from memwrite_bench.capacity.cost import Cost, Seconds, cost
from memwrite_bench.capacity.runs import Run

Outcome = Literal["measured", "too long", "diverged"]


@dataclass(frozen=True)
class Cell:
    """What is to be measured.

    Attributes:
        run: which memory.
        pairs: N, per context.
        steps: K, of a write; None for a writer that takes none.
        seed: of the contexts.
        contexts: how many.
    """

    run: Run
    pairs: int
    steps: int | None
    seed: int
    contexts: int

    @property
    def name(self) -> str:
        """Of its file: what was measured, on which device, but not where the run lies or what it is called."""
        where = self.run.device.replace(":", "")
        steps = "" if self.steps is None else f"-k{self.steps}"
        size = f"n{self.pairs}{steps}-s{self.seed}-c{self.contexts}"
        return f"{self.run.fingerprint[:16]}-{where}-{size}"


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        fingerprint: of the run.
        pairs, steps, seed, contexts: as in `Cell`.
        outcome: "too long" if there are not as many keys, or the context does not fit the model's positions;
            "diverged" if a state was not finite.
        reason: in words, where it was not measured.
        recall: None where it was not measured.
        cost: likewise.
        machine: that it was measured on.
    """

    fingerprint: str
    pairs: int
    steps: int | None
    seed: int
    contexts: int
    outcome: Outcome
    reason: str
    recall: KeyValueEvaluation | None
    cost: Cost | None
    machine: str

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        """The inverse of `to_dict`.

        Raises:
            TypeError, ValueError, KeyError, AttributeError: it is no such data.
        """
        recall, spent = data["recall"], data["cost"]
        if recall is not None:
            recall = KeyValueEvaluation(**{name: _scores(value) for name, value in recall.items()})
        if spent is not None:
            timed = {name: Seconds(**spent[name]) for name in ("single", "batched")}
            spent = Cost(**{**spent, **timed})
        return cls(**{**data, "recall": recall, "cost": spent})


def _scores(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return Scores(**{**value, "interval": tuple(value["interval"])})


def load(path: Path) -> Result | None:
    """The result in a file; None if it is not there or not a whole one, so that it is to be measured."""
    try:
        return Result.from_dict(json.loads(path.read_bytes()))
    except (OSError, TypeError, ValueError, KeyError, AttributeError):
        return None


def measure(cell: Cell, memory: Memory) -> Result:
    """Measure one cell.

    Args:
        cell: what to measure.
        memory: of its run, `cell.run.memory(cell.steps)`.
    """
    recall, spent = None, None
    outcome: Outcome = "measured"
    try:
        examples = _examples(cell, memory)
        reason = _does_not_fit(memory, examples[0])
    except ConfigError as error:
        examples, reason = [], str(error)
    if reason:
        outcome = "too long"
    else:
        try:
            recall = evaluate(memory, examples)
            spent = cost(memory, examples)
        except DivergenceError as error:
            outcome, reason = "diverged", str(error)
            recall = None
    return Result(
        fingerprint=cell.run.fingerprint,
        pairs=cell.pairs,
        steps=cell.steps,
        seed=cell.seed,
        contexts=cell.contexts,
        outcome=outcome,
        reason=reason,
        recall=recall,
        cost=spent,
        machine=machine(memory.backbone.info.device),
    )


def _examples(cell: Cell, memory: Memory) -> list[Example]:
    """Fresh ones.

    Raises:
        ConfigError: the task cannot have so many pairs.
    """
    task = registry().task(cell.run.task.name)
    params = {**cell.run.task.params, "pairs": cell.pairs}
    if task.evaluation_params is not None:
        params = task.evaluation_params(params, ["pairs"])
    config: Any = part_config(task.config, params, "task.params")
    made = task.build(config, memory.backbone.tokenizer)
    fresh = made.fresh(cell.contexts, cell.seed)
    return [fresh[index] for index in range(cell.contexts)]


def _does_not_fit(memory: Memory, example: Example) -> str:
    """Why the context cannot be written as a whole; "" if it can."""
    positions = memory.backbone.info.positions
    behind = 0 if memory.writer.spec.bounded else max(map(len, example.queries))
    needed = len(example.context) + memory.writer.reserved_positions + behind
    if needed <= positions:
        return ""
    return f"{needed} positions are needed, and the model has {positions}"


def as_json(result: Result) -> bytes:
    """A result as the text of its file."""
    return json.dumps(to_dict(result), indent=1).encode()
