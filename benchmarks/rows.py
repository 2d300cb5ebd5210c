"""The rows of the benchmark of record, as a table and as a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from timing import Ratio, ratio


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        part: of the library.
        what: was done, by memwrite.
        baseline: that did the same.
        times: as long, or as much memory, the baseline took.
        ours: seconds or bytes.
        theirs: seconds or bytes.
        unit: "s" or "MB".
        difference: the largest difference between both results; None where they are not numbers.
    """

    part: str
    what: str
    baseline: str
    times: Ratio
    ours: float
    theirs: float
    unit: str = "s"
    difference: float | None = None


def compared(
    part: str, what: str, baseline: str, ours: list[float], theirs: list[float], **extra: Any
) -> Row:
    """Return a row that compares seconds."""
    return Row(part, what, baseline, ratio(theirs, ours), median(ours), median(theirs), **extra)


def table(rows: list[Row], about: str) -> str:
    """Return the report as Markdown."""
    lines = [
        "# The benchmark of record",
        "",
        "Each row compares memwrite with a baseline that did the same work in the same run, in turn, on one "
        "core, except for the documents. \"Times as long\" is how many times as long the baseline took: the "
        "median of the rounds, with quartiles. \"Oracle\" is the plain loop in this repository or, where there "
        "is none, the plain way through the graph. \"Official code\" is the authors' own, from checkouts that "
        "`MEMWRITE_OFFICIAL_GRADMEM` and others name. \"Difference\" is the largest one "
        "between the two results. `make bench` made this page.",
        "",
        about,
        "",
        "![Ratios and their quartiles](benchmarks/ratios.png)",
        "",
        "| part | memwrite | beside | times as long | ours | theirs | difference |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        spread = (
            f" ({_number(row.times.low)} to {_number(row.times.high)})"
            if row.times.low < row.times.high
            else ""
        )
        difference = "" if row.difference is None else f"{row.difference:.0e}"
        lines.append(
            f"| {row.part} | {row.what} | {row.baseline} | {_number(row.times.median)}{spread} | "
            f"{_amount(row.ours, row.unit)} | {_amount(row.theirs, row.unit)} | {difference} |"
        )
    return "\n".join(lines) + "\n"


def _number(number: float) -> str:
    """Format with three digits, and never with an exponent."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _amount(amount: float, unit: str) -> str:
    if unit == "MB":
        return f"{amount:,.0f} MB"
    return f"{_number(amount)} s" if amount >= 1 else f"{_number(1e3 * amount)} ms"


def plot(rows: list[Row], path: Path) -> None:
    """Plot every ratio with its quartiles, on one logarithmic axis."""
    figure = Figure(figsize=(10, 0.9 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows), 0, -1)
    middles = [row.times.median for row in rows]
    spread = [
        [row.times.median - row.times.low for row in rows],
        [row.times.high - row.times.median for row in rows],
    ]
    axes.errorbar(middles, places, xerr=spread, fmt="o", markersize=4)
    axes.axvline(1, color="grey", linewidth=0.8)
    names = [f"{row.part}: {row.what} / {row.baseline}" for row in rows]
    axes.set_yticks(places, names, fontsize=7)
    axes.set(xscale="log", xlabel="times as long as memwrite, or as much memory")
    figure.savefig(path, dpi=120)
