"""The questions report: index.html with everything in it, and report.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from memwrite.config import to_dict
from memwrite.evaluation.controls import table
from memwrite.evaluation.page import render
from memwrite.evaluation.words import word_f1, word_match
from memwrite.tasks.questions import Question
from memwrite.utils.atomic import write_bytes
from memwrite_bench.language.candidates import ANCHORS, Candidate
from memwrite_bench.questions.cells import Result

PAGE, DATA = "index.html", "report.json"
#: What the anchors are called: the model alone, and with the passage in sight.
_NAMES = dict(zip(ANCHORS, ("context removed, no memory", "context visible"), strict=True))


@dataclass(frozen=True)
class Row:
    """What one candidate answers, and what it costs.

    Attributes:
        name: with its budget.
        untrained: whether it has parameters that nobody trained.
        f1: words that answers share with right ones, the mean over questions; None where nothing could be measured.
        exact_match: share of answers that are, normalised, a right one; likewise.
        groups: the same two by group of questions; {} where there is but one.
        state_bytes: of one memory.
        write_seconds: of one passage, measured on several that are written together.
        answer_seconds: of one question, likewise.
        answers: to every question, in order.
        failure: why nothing was measured; "" if it was.
    """

    name: str
    untrained: bool
    f1: float | None
    exact_match: float | None
    groups: dict[str, tuple[float, float]]
    state_bytes: int
    write_seconds: float
    answer_seconds: float
    answers: list[str]
    failure: str


@dataclass(frozen=True)
class Report:
    """Everything that was measured.

    Attributes:
        rows: one for each candidate, the anchors first.
        groups: what questions are counted under, and how many each has; {} where there is but one.
        questions: how many.
        right: of each question the answers that are right.
        contexts: how many passages.
        backbone: the language model.
        command: that made it.
        machines: on which it was measured.
    """

    rows: list[Row]
    groups: dict[str, int]
    questions: int
    right: list[tuple[str, ...]]
    contexts: int
    backbone: str
    command: str
    machines: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, fit for JSON."""
        return to_dict(self)

    def lines(self) -> list[str]:
        """Return the table as plain text."""
        heads, *rows = self.table()
        return table(heads[1:], {row[0]: row[1:] for row in rows})

    def table(self) -> list[list[str]]:
        """Return the rows of the table as words, its heads first."""
        named = [f"F1 {name} ({count})" for name, count in self.groups.items()]
        heads = ["", "F1", "exact match", *named, "bytes", "write s", "answer s"]
        return [heads, *(self._cells(row) for row in self.rows)]

    def _cells(self, row: Row) -> list[str]:
        name = f"{row.name} (untrained)" if row.untrained else row.name
        if row.f1 is None or row.exact_match is None:
            return [name, "not measured", *["-"] * (4 + len(self.groups))]
        groups = [f"{row.groups[group][0]:.1%}" for group in self.groups]
        costs = [f"{row.state_bytes:,}", f"{row.write_seconds:.2f}", f"{row.answer_seconds:.2f}"]
        return [name, f"{row.f1:.1%}", f"{row.exact_match:.1%}", *groups, *costs]

    def save(self, folder: Path) -> None:
        """Write index.html and report.json into `folder`; the page goes last.

        Raises:
            StorageError: the place cannot be written.
        """
        write_bytes(folder / DATA, json.dumps(self.as_dict(), indent=1).encode())
        template = Path(__file__).with_name("questions.html")
        write_bytes(
            folder / PAGE, render(template, "memwrite questions report", "72rem", report=self)
        )


def make_report(
    measured: Sequence[tuple[Candidate, Sequence[Result]]],
    asked: Sequence[Question],
    contexts: int,
    backbone: str,
    command: str,
) -> Report:
    """Summarise all results.

    Args:
        measured: every candidate with its results, all on the same passages.
        asked: every question, in order.
        contexts: how many passages.
        backbone: the language model.
        command: that made them.
    """
    names = [question.group for question in asked]
    groups = {name: names.count(name) for name in sorted(set(names))}
    return Report(
        rows=[_row(candidate, own, asked, groups) for candidate, own in measured],
        groups=groups if len(groups) > 1 else {},
        questions=len(asked),
        right=[question.answers for question in asked],
        contexts=contexts,
        backbone=backbone,
        command=command,
        machines=sorted({result.machine for _, own in measured for result in own}),
    )


def _row(
    candidate: Candidate,
    results: Sequence[Result],
    asked: Sequence[Question],
    groups: Sequence[str] | dict[str, int],
) -> Row:
    failure = next((result.failure for result in results if result.failure), "")
    answers = [*chain.from_iterable(result.answers for result in results)]
    count = sum(result.contexts for result in results)

    def scores(group: str | None = None) -> tuple[float, float]:
        pairs = [
            (answer, question.answers)
            for answer, question in zip(answers, asked, strict=True)
            if group in (None, question.group)
        ]
        return fmean(word_f1(*pair) for pair in pairs), fmean(word_match(*pair) for pair in pairs)

    f1, exact = (None, None) if failure else scores()
    return Row(
        name=_NAMES.get(candidate.label, candidate.name),
        untrained=any(result.untrained for result in results),
        f1=f1,
        exact_match=exact,
        groups={} if failure or len(groups) < 2 else {group: scores(group) for group in groups},
        state_bytes=sum(result.state_bytes * result.contexts for result in results) // count,
        write_seconds=sum(result.write_seconds for result in results) / count,
        answer_seconds=sum(result.read_seconds for result in results) / len(asked),
        answers=[] if failure else answers,
        failure=failure,
    )
