"""The report of a sweep: index.html with everything in it, report.json, and the plot as an SVG file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from memwrite.config import to_dict
from memwrite.errors import InputError
from memwrite.evaluation.controls import table
from memwrite.evaluation.page import render, svg
from memwrite.utils.atomic import write_bytes
from memwrite_bench.capacity.figures import FEWEST_RUNS, t_interval
from memwrite_bench.sweep import plots
from memwrite_bench.sweep.points import Point, short
from memwrite_bench.sweep.work import Result

PAGE, DATA, PLOT = "index.html", "report.json", "sweep.svg"

#: What is compared by default: the first of these that the evaluations have.
METRICS = ("memory.exact_match", "readings.memory.value_kept.mean")
#: Figures whose own intervals, over contexts, stand beside them.
_WITH_INTERVAL = ("exact_match", "mean")
#: What evaluations call the reading with the context in sight.
_VISIBLE = ("full_context", "context visible")


@dataclass(frozen=True)
class Row:
    """Points that differ in nothing but the seed.

    Attributes:
        values: what was swept -> its value here.
        seeds: how many were measured.
        mean: of the metric; None where no seed has it.
        interval: 95%: over seeds where there are `FEWEST_RUNS` or more (Student's t), and never narrower than the mean of
            what each has over its contexts; None where there is neither.
        figures: of each seed.
        unwritten, visible: the same of a memory that has read nothing, and of the context in sight; None where there is
            none, or where the metric is not one of the memory.
        state_bytes, write_seconds, train_seconds: means; None where there are none.
        failures: why seeds could not be measured.
    """

    values: Mapping[str, str]
    seeds: int
    mean: float | None
    interval: tuple[float, float] | None
    figures: list[float]
    unwritten: float | None
    visible: float | None
    state_bytes: float | None
    write_seconds: float | None
    train_seconds: float | None
    failures: list[str]

    @property
    def name(self) -> str:
        """What it is called in a plot."""
        return ", ".join(f"{short(key)} {value}" for key, value in self.values.items())


@dataclass(frozen=True)
class Report:
    """Everything that was measured.

    Attributes:
        rows: in the order of the sweep.
        metric: what is compared.
        results: of every point.
        command: that made it.
        machines: on which it was measured.
    """

    rows: list[Row]
    metric: str
    results: list[Result]
    command: str
    machines: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, fit for JSON."""
        return to_dict(self)

    def lines(self) -> list[str]:
        """Return the table as plain text, and what failed."""
        heads, *rows = self.table()
        return [
            *table(heads[1:], {row[0]: row[1:] for row in rows}),
            *(f"{row.name}: {failure}" for row in self.rows for failure in row.failures),
        ]

    def table(self) -> list[list[str]]:
        """Return the rows of the table as words, its heads first."""
        heads = [
            "",
            self.metric,
            "95% interval",
            "seeds",
            "bytes",
            "write ms",
            "read ms",
            "train s",
        ]
        return [heads, *(_cells(row) for row in self.rows)]

    def save(self, folder: Path) -> None:
        """Write index.html, report.json and the SVG file into `folder`; the page goes last.

        Raises:
            StorageError: the place cannot be written.
        """
        drawn = svg(plots.compared(self.rows, self.metric))
        write_bytes(folder / PLOT, drawn.encode())
        write_bytes(folder / DATA, json.dumps(self.as_dict(), indent=1).encode())
        template = Path(__file__).with_name("sweep.html")
        page = render(template, "memwrite sweep", "60rem", report=self, plot=drawn)
        write_bytes(folder / PAGE, page)


def _cells(row: Row) -> list[str]:
    def number(value: float | None, form: str, factor: float = 1) -> str:
        return "-" if value is None else format(value * factor, form)

    low_high = "-" if row.interval is None else "{:.3f} to {:.3f}".format(*row.interval)
    return [
        row.name or "as it is", number(row.mean, ".3f"), low_high, number(row.unwritten, ".3f"), number(row.visible, ".3f"),
        str(row.seeds), number(row.state_bytes, ",.0f"), number(row.write_seconds, ",.1f", 1000),
        number(row.train_seconds, ",.0f"),
    ]  # fmt: skip


def make_report(
    points: Sequence[Point], results: Sequence[Result], metric: str | None, command: str
) -> Report:
    """Summarise all results.

    Args:
        points: of the sweep.
        results: of each of them.
        metric: a path into evaluations; None for the first of `METRICS` that they have.
        command: that made them.

    Raises:
        InputError: no evaluation has such a metric.
    """
    evaluations = [result.evaluation for result in results if result.evaluation is not None]
    tried = METRICS if metric is None else (metric,)
    chosen = next((m for m in tried if any(_figure(e, m) is not None for e in evaluations)), None)
    if evaluations and chosen is None:
        raise InputError(
            f"no evaluation has a number '{' or '.join(tried)}': name one that `memwrite eval --json` prints, as in "
            f"--metric memory.token_accuracy"
        )
    of_name = {result.name: result for result in results}
    groups: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(of_name[point.name])
    shown = chosen or tried[0]
    return Report(
        rows=[_row(dict(group), own, shown) for group, own in groups.items()],
        metric=shown,
        results=list(results),
        command=command,
        machines=sorted({result.machine for result in results}),
    )


def _at(evaluation: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a path such as "memory.exact_match"; None for nothing."""
    value: Any = evaluation
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _figure(evaluation: Mapping[str, Any], path: str) -> float | None:
    value = _at(evaluation, path)
    return float(value) if isinstance(value, (int, float)) else None


def _row(values: Mapping[str, str], results: Sequence[Result], metric: str) -> Row:
    evaluations = [result.evaluation for result in results if result.evaluation is not None]
    seconds = [result.training.get("seconds") for result in results if result.training]

    def over(*paths: str) -> float | None:
        return _mean(_figure(e, path) for e in evaluations for path in paths)

    figures = [f for e in evaluations if (f := _figure(e, metric)) is not None]
    unwritten, *visible = (_instead(metric, name) for name in ("unwritten", *_VISIBLE))
    return Row(
        values=values,
        seeds=len(figures),
        mean=_mean(figures),
        interval=_interval(evaluations, figures, metric),
        figures=figures,
        unwritten=over(unwritten),
        visible=over(*visible),
        state_bytes=over("state_bytes"),
        write_seconds=over("write_seconds"),
        train_seconds=_mean(seconds),
        failures=[result.failure for result in results if result.failure],
    )


def _instead(metric: str, name: str) -> str:
    """Return the path of another reading of what is read from the memory; "" where it is not read from it."""
    parts = metric.split(".")
    return ".".join(name if part == "memory" else part for part in parts if "memory" in parts)


def _mean(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return mean(known) if known else None


def _interval(
    evaluations: Sequence[Mapping[str, Any]], figures: Sequence[float], metric: str
) -> tuple[float, float] | None:
    """Return the wider of the intervals over seeds and over contexts: seeds may agree by chance."""
    intervals = [t_interval(figures)] if len(figures) >= FEWEST_RUNS else []
    parent, _, leaf = metric.rpartition(".")
    if leaf in _WITH_INTERVAL:
        own = [ends for e in evaluations if (ends := _at(e, f"{parent}.interval"))]
        intervals += [(mean(low for low, _ in own), mean(high for _, high in own))] if own else []
    known = [interval for interval in intervals if interval is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None
