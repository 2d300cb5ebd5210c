"""A sweep at a glance: lines over the values of a number, or a dot for every combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memwrite.evaluation.page import ACCENT, plain
from memwrite_bench.lines import End, look, name_lines
from memwrite_bench.sweep.points import short


class Compared(Protocol):
    """What a plot needs to know of a row."""

    @property
    def name(self) -> str: ...

    @property
    def values(self) -> Mapping[str, str]: ...

    @property
    def mean(self) -> float | None: ...

    @property
    def interval(self) -> tuple[float, float] | None: ...


def compared(rows: Sequence[Compared], metric: str) -> Figure:
    """Plot the metric of the rows with its 95% intervals.

    The key with the most values that are all numbers lies along the axis, a line for each combination of the others. Where
    there is none, every row is a dot.
    """
    measured = [row for row in rows if row.mean is not None]
    key = _along(measured)
    height = 4.6 if key is not None else 1.2 + 0.35 * len(measured)
    figure, axes = plt.subplots(figsize=(8.4, height), layout="constrained")
    if key is None:
        _dots(axes, measured, metric)
    else:
        _lines(axes, measured, key, metric)
    return plain(figure)


def _along(rows: Sequence[Compared]) -> str | None:
    values = {key: {row.values[key] for row in rows} for key in (rows[0].values if rows else ())}
    numbers = [key for key, found in values.items() if all(map(_is_number, found))]
    return max(numbers, key=lambda key: len(values[key]), default=None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _dots(axes: Axes, rows: Sequence[Compared], metric: str) -> None:
    for place, row in enumerate(rows):
        axes.plot(row.mean or 0.0, place, "o", color=ACCENT, ms=5)
        if row.interval is not None:
            axes.hlines(place, *row.interval, color=ACCENT, lw=1, alpha=0.5)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(metric)


def _lines(axes: Axes, rows: Sequence[Compared], key: str, metric: str) -> None:
    lines: dict[str, list[Compared]] = {}
    for row in rows:
        rest = [f"{short(k)} {v}" for k, v in row.values.items() if k != key]
        lines.setdefault(", ".join(rest), []).append(row)
    ends: list[End] = []
    for index, (name, own) in enumerate(lines.items()):
        own = sorted(own, key=lambda row: float(row.values[key]))
        colour, marker = look(index)
        xs, ys = [float(row.values[key]) for row in own], [row.mean or 0.0 for row in own]
        axes.plot(xs, ys, color=colour, marker=marker, ms=4.5, lw=1.5)
        for x, row in zip(xs, own, strict=True):
            if row.interval is not None:
                axes.vlines(x, *row.interval, color=colour, lw=1, alpha=0.5)
        ends += [(xs[-1], ys[-1], name, colour)] if name else []
    places = sorted({float(row.values[key]) for row in rows})
    if places[0] > 0 and places[-1] / places[0] >= 8:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xticks([], minor=True)
    axes.set(xlabel=key, ylabel=metric)
    name_lines(axes, ends)
