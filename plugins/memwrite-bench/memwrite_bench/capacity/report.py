"""The capacity report: index.html with everything in it, report.json, and the plots as SVG files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from memwrite.config import to_dict
from memwrite.evaluation.machine import machine
from memwrite.evaluation.page import render, svg
from memwrite.utils.atomic import write_bytes
from memwrite_bench.capacity import plots, tables
from memwrite_bench.capacity.cells import Cell, Result
from memwrite_bench.capacity.conclusions import conclusions
from memwrite_bench.capacity.runs import Run
from memwrite_bench.capacity.summary import Group, summarise

PAGE, DATA = "index.html", "report.json"


@dataclass(frozen=True)
class Report:
    """Everything that was measured.

    Attributes:
        groups: of runs that differ in their seed alone.
        runs: each as in `Run.as_dict`.
        cells: every measurement.
        command: that made it.
        machine: that made the report; `cells` say on which they were measured.
    """

    groups: list[Group]
    runs: list[dict[str, Any]]
    cells: list[Result]
    command: str
    machine: str

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, fit for JSON."""
        return {**to_dict(self), "machines": self.machines}

    @property
    def machines(self) -> list[str]:
        """The machines on which the cells were measured."""
        return sorted({cell.machine for cell in self.cells})

    def lines(self) -> list[str]:
        """Return the summary as a table of plain text."""
        return tables.plain_text(tables.summary(self.groups))

    def save(self, folder: Path) -> None:
        """Write index.html, report.json and the SVG files into `folder`; the page goes last.

        Raises:
            StorageError: the place cannot be written.
        """
        drawn = {name: svg(figure) for name, figure in self._figures().items()}
        for name, image in drawn.items():
            write_bytes(folder / f"{name}.svg", image.encode())
        write_bytes(folder / DATA, json.dumps(self.as_dict(), indent=1).encode())
        page = render(
            Path(__file__).with_name("capacity.html"),
            "memwrite capacity report",
            "72rem",
            report=self,
            conclusions=conclusions(self.groups),
            plots=drawn,
            summary=tables.summary(self.groups),
            recall=tables.recall(self.groups),
            information=tables.information(self.groups),
            time=tables.time(self.groups),
            batch_time=tables.batch_time(self.groups),
            bytes=tables.sizes(self.groups),
            controls=tables.controls(self.groups),
            failures=[
                (group.name, row, sentence)
                for group in self.groups
                for row in group.rows
                for sentence in row.failures
            ],
            configs={run["label"]: json.dumps(run["config"], indent=2) for run in self.runs},
        )
        write_bytes(folder / PAGE, page)

    def _figures(self) -> Mapping[str, Figure]:
        groups = self.groups
        figures = {
            "exact-match": plots.against_pairs(groups, "exact_match", "exact match"),
            "exact-match-steps": plots.against_steps(groups, "exact_match", "exact match"),
            "bits-per-float": plots.against_pairs(
                groups, "bits_per_float", "bits recalled per state float"
            ),
            "bits-gained": plots.against_pairs(groups, "bits_gained", "bits gained per context"),
            "binding": plots.against_pairs(groups, "binding", "binding", chance=True),
            "write-time": plots.times(groups, "write", "prefill", "WRITE of one context, ms"),
            "read-time": plots.times(groups, "read", "visible_read", "READ of one query, ms"),
            "bytes": plots.sizes(groups),
            "controls": plots.controls(groups),
        }
        return {name: figure for name, figure in figures.items() if figure is not None}


def make_report(
    runs: Sequence[Run], cells: Sequence[Cell], results: Sequence[Result], command: str
) -> Report:
    """Make the report of a complete grid.

    Args:
        runs: all of them.
        cells: of the grid.
        results: of each of the cells.
        command: that made it.
    """
    return Report(
        groups=summarise(cells, results),
        runs=[run.as_dict() for run in runs],
        cells=list(results),
        command=command,
        machine=machine(),
    )
