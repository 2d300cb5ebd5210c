"""The language report: what memories are worth to the text behind a passage, on a language model as it is.

from memwrite_bench.language import language
report = language("smollm2-135m", [Path("book.txt")], Path("runs/language"), writers=["h2o"], slots=[8, 16])
report.save(Path("runs/language"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memwrite.errors import InputError, PositionsExceeded
from memwrite.memory import Memory
from memwrite.tasks.base import Example
from memwrite.tasks.language import LanguageConfig, LanguageTask
from memwrite.utils.atomic import make_folder, write_bytes
from memwrite.utils.cpu import tuned_cpu
from memwrite.utils.progress import track
from memwrite_bench.language.candidates import Candidate, candidates
from memwrite_bench.language.cells import Result, as_json, cell, load, measure
from memwrite_bench.language.report import Report, make_report

__all__ = ["Report", "language"]

#: Passages that are written and read at once, and their tokens together: at most, but a passage always.
BATCH, TOKENS = 4, 1024


@tuned_cpu()
def language(
    backbone: Mapping[str, Any],
    texts: Sequence[Path],
    folder: Path,
    *,
    writers: Sequence[str] = (),
    slots: Sequence[int] = (8, 16, 32),
    sentences: Sequence[int] = (1, 2),
    passages: int = 24,
    context: int = 160,
    length: int = 96,
    command: str = "",
) -> Report:
    """Measure memories of passages, and return the report, which `Report.save` writes.

    What `folder` holds already is not measured again.

    Args:
        backbone: the language model, as in a configuration.
        texts: UTF-8 files that the passages are taken from.
        folder: for one file per measurement.
        writers: names of writers, "bm25" and YAML files; none for all of them that are installed.
        slots: budgets, for each writer that counts its slots.
        sentences: likewise, for retrieval.
        passages: at most so many.
        context: tokens that are written, of each.
        length: tokens behind them that are predicted.
        command: the command line, shown in the report.

    Raises:
        ConfigError, PluginError: the model, a file or a name is wrong.
        InputError: the texts hold no passage of that length.
        PositionsExceeded: a passage is longer than the model's positions.
        StorageError: `folder` cannot be written.
    """
    config = LanguageConfig(
        [str(path) for path in texts],
        held_out=1.0,
        context=context,
        length=length,
        examples=passages,
    )
    chosen = candidates(writers, slots, sentences)
    beside = Memory.from_config({"backbone": dict(backbone)})
    found = LanguageTask(config, beside.backbone.tokenizer).evaluation()
    if not found:
        raise InputError(
            f"the texts hold no passage of {context + length} tokens: name longer ones, or lower --context or --length"
        )
    examples = [found[index] for index in range(len(found))]
    longest = max(len(example.context) + length for example in examples)
    if longest > (positions := beside.backbone.info.positions):
        raise PositionsExceeded(
            f"a context and the text behind it take {longest} positions, but the model has only {positions}: lower "
            f"--context or --length"
        )
    cells = folder / "cells"
    make_folder(cells)
    size = max(min(BATCH, TOKENS // context), 1)
    batches = [examples[start : start + size] for start in range(0, len(examples), size)]
    measured: list[tuple[Candidate, list[Result]]] = [(candidate, []) for candidate in chosen]
    # All that is measured of a passage is measured at about the same time, on a machine as busy.
    work = [(candidate, results, batch) for batch in batches for candidate, results in measured]
    for candidate, results, batch in track(work, "measure", "batch"):
        results.append(_result(candidate, beside, batch, cells))
    return make_report(measured, config, str(backbone.get("path", backbone.get("type"))), command)


def _result(candidate: Candidate, beside: Memory, batch: Sequence[Example], cells: Path) -> Result:
    path = cell(candidate, beside, batch, cells)
    result = load(path)
    if result is None:
        result = measure(candidate, beside, batch)
        write_bytes(path, as_json(result))
    return result
