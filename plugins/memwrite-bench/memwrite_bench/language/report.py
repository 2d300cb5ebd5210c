"""The language report: index.html with everything in it, report.json, and the plots as SVG files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from memwrite.config import to_dict
from memwrite.evaluation.controls import table
from memwrite.evaluation.page import render, svg
from memwrite.tasks.language import LanguageConfig
from memwrite.utils.atomic import write_bytes
from memwrite_bench.language import plots
from memwrite_bench.language.candidates import ANCHORS, FULL, Candidate
from memwrite_bench.language.cells import Result
from memwrite_bench.language.rows import Row, joined, row_of

PAGE, DATA = "index.html", "report.json"


@dataclass(frozen=True)
class Report:
    """Everything that was measured.

    Attributes:
        rows: one for each candidate, the anchors first.
        backbone: the language model.
        contexts: how many passages.
        context, length: tokens of each context, and of the text behind it.
        reread_seconds: from a context that is read again to the token behind a query of one; median.
        command: that made it.
        machines: on which it was measured.
    """

    rows: list[Row]
    backbone: str
    contexts: int
    context: int
    length: int
    reread_seconds: float
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
        heads = [
            "",
            "value kept",
            "95% interval",
            "one context",
            "agreement",
            "recall",
            "bits saved",
        ]
        heads += ["bytes", "write s", "read s", "first token s", "from disk s", "times faster"]
        return [heads, *(_cells(row) for row in self.rows)]

    def _ratios(self) -> list[float]:
        return sorted({row.ratio for row in self.rows if row.ratio})

    def save(self, folder: Path) -> None:
        """Write index.html, report.json and the SVG files into `folder`; the page goes last.

        Raises:
            StorageError: the place cannot be written.
        """
        drawn = {
            "ratio": svg(
                plots.against(
                    self.rows, "ratio", "tokens of the context for each slot", ticks=self._ratios()
                )
            ),
            "bytes": svg(plots.against(self.rows, "state_bytes", "bytes of a memory")),
            "seconds": svg(plots.against(self.rows, "write_seconds", "seconds to write a context")),
            "first-token": svg(
                plots.against(
                    self.rows,
                    "first_token_seconds",
                    "seconds to the first token",
                    line=(self.reread_seconds, "reading the context again"),
                )
            ),
        }
        for name, image in drawn.items():
            write_bytes(folder / f"{name}.svg", image.encode())
        write_bytes(folder / DATA, json.dumps(self.as_dict(), indent=1).encode())
        template = Path(__file__).with_name("language.html")
        title = "memwrite language report"
        write_bytes(folder / PAGE, render(template, title, "72rem", report=self, plots=drawn))


def _cells(row: Row) -> list[str]:
    name = f"{row.name} (untrained)" if row.untrained else row.name
    if row.reading is None:
        return [name, "not measured", *["-"] * 11]
    value = row.reading.value_kept
    kept, interval, one = "-", "-", "-"
    if value is not None:
        kept, one = f"{value.mean:.3f}", f"{value.least:.2f} to {value.most:.2f}"
        interval = "-" if not value.interval else "{:.2f} to {:.2f}".format(*value.interval)
    return [
        name, kept, interval, one, f"{row.reading.agreement:.1%}",
        "-" if row.recall is None else f"{row.recall:.1%}", f"{row.bits:.0f}", f"{row.state_bytes:,}",
        f"{row.write_seconds:.2f}", f"{row.read_seconds:.2f}", f"{row.first_token_seconds:.3f}",
        f"{row.disk_seconds:.3f}", "-" if row.times_faster is None else f"{row.times_faster:.1f}",
    ]  # fmt: skip


def make_report(
    measured: Sequence[tuple[Candidate, Sequence[Result]]],
    config: LanguageConfig,
    backbone: str,
    command: str,
) -> Report:
    """Summarise all results.

    Args:
        measured: every candidate with its results, all on the same passages; the anchors are among them.
        config: of the task.
        backbone: the language model.
        command: that made them.
    """
    anchors = {c.label: joined(own, "behind") for c, own in measured if c.label in ANCHORS}
    without, visible = (anchors[name] for name in ANCHORS)
    every = [*chain.from_iterable(own for _, own in measured)]
    whole = next(own for candidate, own in measured if candidate.label == FULL)
    rereading = [result.reread_seconds or 0.0 for result in whole]
    return Report(
        rows=[
            row_of(candidate, own, without, visible, rereading, config.context)
            for candidate, own in measured
        ],
        backbone=backbone,
        contexts=len(without),
        context=config.context,
        length=config.length,
        reread_seconds=median(rereading),
        command=command,
        machines=sorted({result.machine for result in every}),
    )
