"""The questions report: what memories answer about passages, on a language model that answers from a text in sight.

from memwrite_bench.questions import questions
report = questions({"path": "smollm2-135m"}, squad, Path("runs/questions"), writers=["h2o"], slots=[16, 32])
report.save(Path("runs/questions"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memwrite.errors import ConfigError, InputError, PositionsExceeded
from memwrite.memory import Memory
from memwrite.tasks.questions import QuestionsConfig, QuestionsExample, QuestionsTask
from memwrite.utils.atomic import make_folder, write_bytes
from memwrite.utils.cpu import tuned_cpu
from memwrite.utils.progress import track
from memwrite_bench.language.candidates import Candidate, candidates
from memwrite_bench.questions.cells import Result, as_json, cell, load, measure
from memwrite_bench.questions.report import Report, make_report

__all__ = ["Report", "questions"]

#: Passages that are written and asked about at once.
BATCH = 4


@tuned_cpu()
def questions(
    backbone: Mapping[str, Any],
    task: QuestionsConfig,
    folder: Path,
    *,
    writers: Sequence[str] = (),
    slots: Sequence[int] = (8, 16, 32),
    sentences: Sequence[int] = (1, 2),
    passages: int = 24,
    command: str = "",
) -> Report:
    """Ask memories of the held-out passages of a task, and return the report, which `Report.save` writes.

    What `folder` holds already is not measured again.

    Args:
        backbone: the language model, as in a configuration.
        task: where passages and questions come from, such as a `SquadConfig`.
        folder: for one file per measurement.
        writers: names of writers, "bm25" and YAML files; none for all of them that are installed.
        slots: budgets, for each writer that counts its slots.
        sentences: likewise, for retrieval.
        passages: at most so many, taken at even distances.
        command: the command line, shown in the report.

    Raises:
        ConfigError, PluginError: the model, a file or a name is wrong, or the task's answers are no phrases.
        InputError: a file is damaged, or the task holds nothing out.
        PositionsExceeded: a passage and its question are longer than the model's positions.
        StorageError: `folder` cannot be written.
    """
    if not task.in_words:
        raise ConfigError(
            "the answers of this task are no phrases: evaluate it with `memwrite eval`"
        )
    chosen = candidates(writers, slots, sentences)
    beside = Memory.from_config({"backbone": dict(backbone)})
    examples = _passages(task, beside, passages)
    cells = folder / "cells"
    make_folder(cells)
    batches = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
    measured: list[tuple[Candidate, list[Result]]] = [(candidate, []) for candidate in chosen]
    # All that is asked about a passage is asked at about the same time, on a machine as busy.
    work = [(candidate, results, batch) for batch in batches for candidate, results in measured]
    for candidate, results, batch in track(work, "ask", "batch"):
        path = cell(candidate, beside, batch, cells)
        result = load(path)
        if result is None:
            result = measure(candidate, beside, batch)
            write_bytes(path, as_json(result))
        results.append(result)
    asked = [question for example in examples for question in example.questions]
    return make_report(measured, asked, len(examples), str(backbone.get("path", "")), command)


def _passages(task: QuestionsConfig, beside: Memory, count: int) -> list[QuestionsExample]:
    # Each passage once, with all of its questions.
    made = QuestionsTask(replace(task, queries=None), beside.backbone.tokenizer).evaluation()
    found = [e for i in range(len(made)) if isinstance(e := made[i], QuestionsExample)]
    if not found:
        raise InputError(
            "there is nothing to ask: the files hold nothing out; name articles that they have, or other files"
        )
    if count < len(found):
        found = [found[i * len(found) // count] for i in range(count)]
    longest = max(len(e.context) + max(map(len, e.queries)) for e in found)
    if longest > (positions := beside.backbone.info.positions):
        raise PositionsExceeded(
            f"a passage and its question take {longest} positions, but the model has only {positions}: leave out what is "
            f"longer with the task's parameter tokens"
        )
    return found
