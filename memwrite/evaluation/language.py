"""Score a memory of passages by what it is worth to the text behind them, beside controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from memwrite.config import to_dict
from memwrite.errors import InputError, PositionsExceeded
from memwrite.evaluation.controls import (
    context_visible,
    evaluation_mode,
    parts,
    table,
    unwritten,
    without_memory,
)
from memwrite.evaluation.cost import Cost, Meter
from memwrite.evaluation.value_kept import Prediction, Reading, predict, share_right, summarise
from memwrite.tasks.base import EvaluatedMemory, Example, Examples, collate
from memwrite.utils.progress import track

#: Contexts that are written and read at once.
BATCH = 8

M = TypeVar("M", bound=EvaluatedMemory)


@dataclass(frozen=True)
class LanguageEvaluation(Cost):
    """The worth of a memory to the text that follows its context, beside controls.

    Attributes:
        contexts: how many.
        context_tokens: tokens of them all.
        tokens: that were predicted, of all texts.
        readings: "memory", "unwritten" (a memory that has read nothing), "another's state", "no memory" and
            "context visible".
        recall: share of the context's own tokens, its first left out, that are the first choice when the context is
            read again behind its memory; None where both are longer than the model's positions.
        recall_without: the same without a memory.
    """

    contexts: int
    context_tokens: int
    tokens: int
    readings: Mapping[str, Reading]
    recall: float | None
    recall_without: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return to_dict(self)

    def lines(self) -> list[str]:
        """Return a table of the memory and its controls."""
        heads = ("bits per token", "value kept", "95% interval", "one context", "agreement")
        recall = "-" if self.recall is None else f"{self.recall:.1%}"
        return [
            f"{self.contexts} contexts of {self.context_tokens // self.contexts} tokens, {self.tokens} tokens behind "
            f"them; {self.size}",
            self.time,
            *table(heads, {name: _cells(reading) for name, reading in self.readings.items()}),
            f"context read again: {recall} of its tokens are the first choice, {self.recall_without:.1%} without memory",
            "value kept: 0 is no memory, 1 as good as the context in sight, below 0 harmful; agreement: first "
            "choices that are those with the context in sight",
        ]


def _cells(reading: Reading) -> list[str]:
    kept = reading.value_kept
    cells = [f"{reading.bits_per_token:.3f}", "-", "-", "-", f"{reading.agreement:.1%}"]
    if kept is not None:
        cells[1] = f"{kept.mean:.2f}"
        cells[2] = (
            "-" if kept.interval is None else f"{kept.interval[0]:.2f} to {kept.interval[1]:.2f}"
        )
        cells[3] = f"{kept.least:.2f} to {kept.most:.2f}"
    return cells


def evaluate(memory: EvaluatedMemory, examples: Examples) -> LanguageEvaluation:
    """Write every context once and predict what follows it, in evaluation mode.

    Args:
        memory: the memory to score; its mode is restored.
        examples: of the task `language`.

    Raises:
        InputError: there is no example.
        PositionsExceeded: a context and its text are longer than the model's positions.
    """
    if not len(examples):
        raise InputError(
            "there is nothing to evaluate: no held-out text is as long as task.params.context and length together; "
            "name other files, as in task.params.files=[book.txt], or lower them"
        )
    passages = [examples[index] for index in range(len(examples))]
    longest = max(len(example.context) + len(example.queries[0]) for example in passages)
    full = context_visible(memory, longest)
    if full is None:
        raise PositionsExceeded(
            f"a context and its text take {longest} positions, but the model has only "
            f"{memory.backbone.info.positions}: lower task.params.context or length"
        )
    with evaluation_mode(memory):
        return _evaluate(memory, full, passages)


def _evaluate(memory: M, full: M, examples: Sequence[Example]) -> LanguageEvaluation:
    nothing = without_memory(memory)
    predictions: dict[str, list[Prediction]] = {}
    again: list[Prediction] = []
    again_without: list[Prediction] = []
    meter = Meter(memory.backbone.info.device)
    longest = max(len(example.context) for example in examples)
    recalled = 2 * longest <= memory.backbone.info.positions
    for indices in track([*parts(len(examples), BATCH)], "evaluate", "batch"):
        part = [examples[index] for index in indices]
        contexts = collate(part)["batch"].context
        state = meter.timed("write", memory.write, contexts).state
        meter.written(state, len(part))
        none, cache = nothing.write(contexts).state, full.write(contexts).state
        meter.cached(cache, len(part))
        readings = {
            "memory": (memory, state),
            "unwritten": (memory, unwritten(memory, len(part))),
            "another's state": (memory, state.map(lambda tensor: tensor.roll(1, 0))),
            "no memory": (nothing, none),
            "context visible": (full, cache),
        }
        if len(part) == 1:
            del readings["another's state"]
        texts = [example.queries[0] for example in part]
        for name, (reader, given) in readings.items():
            found = meter.timed(name, predict, reader, given, texts)
            predictions.setdefault(name, []).extend(found)
        repeated = [example.context for example in part]
        again_without += predict(nothing, none, repeated)
        if recalled:
            again += predict(memory, state, repeated)
    without, visible = predictions["no memory"], predictions["context visible"]
    return LanguageEvaluation(
        contexts=len(examples),
        context_tokens=sum(len(example.context) for example in examples),
        tokens=sum(len(prediction.choices) for prediction in without),
        **meter.cost(),
        readings={name: summarise(own, without, visible) for name, own in predictions.items()},
        recall=share_right(again) if recalled else None,
        recall_without=share_right(again_without),
    )
