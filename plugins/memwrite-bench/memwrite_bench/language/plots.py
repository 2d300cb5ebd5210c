"""Value kept against a cost: a line for each writer over its budgets, named at its end."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from memwrite.evaluation.page import INK, MUTED, plain
from memwrite_bench.language.candidates import ANCHORS
from memwrite_bench.language.rows import Row
from memwrite_bench.lines import End, look, name_lines

#: What is worse than this is drawn at the lower edge.
_FLOOR = -0.25


def against(
    rows: Sequence[Row],
    name: str,
    what: str,
    *,
    line: tuple[float, str] | None = None,
    ticks: Sequence[float] = (),
) -> Figure:
    """Plot value kept against the attribute `name` of the rows, on a logarithmic axis; the bars are 95% intervals.

    Args:
        rows: to draw; those without value kept, and those that cost nothing, are left out.
        name: of the cost.
        what: on the axis, with its unit.
        line: a cost to compare with, and what it is.
        ticks: the costs that are written on the axis, in place of powers of ten.
    """
    figure, axes = plt.subplots(figsize=(8.4, 4.6), layout="constrained")
    labels = list(dict.fromkeys(row.label for row in rows if row.label not in ANCHORS))
    ends: list[End] = []
    for index, label in enumerate([ANCHORS[1], *labels]):
        own = [row for row in rows if row.label == label and row.kept is not None]
        points = sorted(
            ((getattr(row, name), row) for row in own if getattr(row, name)),
            key=lambda point: point[0],
        )
        if not points:
            continue
        colour, marker = look(index)
        xs = [x for x, _ in points]
        ys = [max(row.kept or 0.0, _FLOOR) for _, row in points]
        axes.plot(xs, ys, color=colour, marker=marker, ms=4.5, lw=1.5)
        for x, row in points:
            value = row.reading.value_kept if row.reading else None
            if value and value.interval:
                low, high = (max(end, _FLOOR) for end in value.interval)
                axes.vlines(x, low, high, color=colour, lw=1, alpha=0.5)
        ends.append((xs[-1], ys[-1], label, colour))
    for height in (0, 1):
        axes.axhline(height, color=MUTED, lw=1, ls=":")
    axes.set_xscale("log")
    if ticks:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    if line is not None:
        axes.axvline(line[0], color=MUTED, lw=1, ls="--")
        axes.text(line[0], 0.02, f"{line[1]} ", ha="right", fontsize=8, color=INK)
    axes.set(xlabel=what, ylabel="value kept")
    name_lines(axes, ends)
    return plain(figure)
