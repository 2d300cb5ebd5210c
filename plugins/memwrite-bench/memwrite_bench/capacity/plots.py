"""The report's plots: one line for each group, in colours that the colour-blind can tell apart, named at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from memwrite.evaluation.page import ACCENT, MUTED, label, plain
from memwrite_bench.capacity.figures import SHARES
from memwrite_bench.capacity.summary import Group, Row
from memwrite_bench.lines import COLOURS, End, look, name_lines

LineStyle = str | tuple[int, tuple[float, ...]]

#: So many lines may share a panel, and so many panels stand side by side.
_TOGETHER, _ACROSS = 8, 3
#: Of the K's of a group, from the least on.
_STYLES: tuple[LineStyle, ...] = ("-", (0, (5, 1.5)), (0, (2.5, 1.2)), (0, (1, 1)))
_DASHES: Mapping[str, LineStyle] = {"full-context": (0, (6, 2)), "no-memory": (0, (1, 1.5))}

#: The rows that belong to a line, each with its place along the axis.
Line = Sequence[tuple[float, Row]]


def against_pairs(groups: Sequence[Group], name: str, what: str, chance: bool = False) -> Figure:
    """Plot the figure `name` against N: a line for each group and K, in one panel if they are few, else a panel a group.

    Args:
        groups: to draw.
        name: of `FIGURES`.
        what: on the axis, with its unit.
        chance: also draw 1/N.
    """
    few = sum(len(group.columns) for group in groups) <= _TOGETHER
    figure = (_together if few else _apart)(groups, name)
    places = sorted({row.pairs for group in groups for row in group.rows})
    for axes in figure.axes:
        if chance:
            axes.plot(places, [1 / x for x in places], color=MUTED, lw=1, ls=":")
            label(axes, "chance, 1/N", places[0], 1 / places[0], (4, 4))
        _scale(axes, name)
        _powers(axes, places)
    figure.supxlabel("pairs in the context, N", fontsize=10)
    figure.supylabel(what, fontsize=10)
    return plain(figure)


def _together(groups: Sequence[Group], name: str) -> Figure:
    """Draw every line into one panel, in the group's colour and the K's dashes, its name at its end."""
    figure, axes = _figure()
    ends: list[End] = []
    for index, group in enumerate(groups):
        for place, k in enumerate(group.columns):
            text = group.name + (_steps(k) if len(group.columns) > 1 else "")
            style = _STYLES[place % len(_STYLES)]
            ends += _draw(axes, group, look(index), _line(group, k), name, text, style)
    name_lines(axes, ends)
    return figure


def _apart(groups: Sequence[Group], name: str) -> Figure:
    """Draw a panel for each group with its K beside each other, and the baselines in all of them."""
    baselines = [group for group in groups if group.baseline]
    shown = [group for group in groups if not group.baseline] or baselines
    rows = math.ceil(len(shown) / _ACROSS)
    figure, grid = plt.subplots(
        rows, _ACROSS, figsize=(7.6, 0.7 + 1.9 * rows), sharex=True, sharey=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    colours = _colours_of_steps(groups)
    panels = [axes for row in grid for axes in row]
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes, group in zip(panels, shown, strict=False):
        for baseline in baselines:
            for k in baseline.columns:
                _draw(axes, baseline, (MUTED, ""), _line(baseline, k), name, "")
        for k in group.columns:
            _draw(axes, group, (colours[k], "o"), _line(group, k), name, "")
        axes.set_title(group.name, fontsize=8, loc="left")
    handles = [
        Line2D([], [], color=c, marker="o", label=f"K = {k}") for k, c in colours.items() if k
    ]
    handles += [
        Line2D([], [], color=MUTED, ls=_DASHES[w], label=w)
        for w in {g.writer: 0 for g in baselines}
    ]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=5, loc="outside upper left")
    return figure


def _line(group: Group, k: int | None) -> Line:
    return [(row.pairs, row) for row in group.rows if row.steps == k]


def _colours_of_steps(groups: Sequence[Group]) -> dict[int | None, str]:
    """Return a colour for each K, and the accent for writers without."""
    return {None: ACCENT, **{k: look(i)[0] for i, k in enumerate(_all_steps(groups))}}


def against_steps(groups: Sequence[Group], name: str, what: str) -> Figure | None:
    """Plot the figure `name` against K, each group at the N it was trained on; None if no group has two K's.

    Baselines and writers without K are level lines.
    """
    columns = _all_steps(groups)
    if not any(len(group.columns) > 1 for group in groups):
        return None
    figure, axes = _figure()
    ends: list[End] = []
    for index, group in enumerate(groups):
        line = [
            (k, row)
            for row in group.rows
            if row.pairs == group.pairs
            for k in (columns if row.steps is None else [row.steps])
        ]
        ends += _draw(axes, group, look(index), line, name, f"{group.name}, N={group.pairs}")
    _scale(axes, name)
    name_lines(axes, ends)
    axes.set_xticks(columns)
    axes.set(xlabel="steps of a write, K", ylabel=what)
    return plain(figure)


def times(groups: Sequence[Group], name: str, beside: str, what: str) -> Figure:
    """Plot the milliseconds of one call against N, beside those of the full context, on logarithmic axes; each group with
    the K that recalls most.

    Args:
        groups: to draw.
        name: of the call in `FIGURES`.
        beside: of the full context's.
        what: on the axis.
    """
    figure, axes = _figure()
    ends: list[End] = []
    for index, group in enumerate(groups):
        best = own_row(group, most=True)
        k = group.columns[0] if best is None else best.steps
        ends += _curve(axes, index, group, k, name, "-", 1000, group.name + _steps(k))
        _curve(axes, index, group, group.columns[0], beside, "--", 1000)
    _beside_visible(axes, groups, ends)
    axes.set(ylabel=what)
    return plain(figure)


def sizes(groups: Sequence[Group]) -> Figure:
    """Plot the bytes of a state against N, beside those of the context's KV cache, on logarithmic axes."""
    figure, axes = _figure()
    ends: list[End] = []
    for index, group in enumerate(groups):
        first = group.columns[0]  # a state is as large at any K
        ends += _curve(axes, index, group, first, "state_bytes", "-", 1, group.name)
        _curve(axes, index, group, first, "kv_bytes", "--", 1)
    _beside_visible(axes, groups, ends)
    axes.set(ylabel="bytes for one context")
    return plain(figure)


def _beside_visible(axes: Axes, groups: Sequence[Group], ends: Sequence[End]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_locator(NullLocator())
    _powers(axes, [row.pairs for group in groups for row in group.rows])
    axes.set(xlabel="pairs in the context, N")
    axes.set_title("dashed: the same model with the context visible", fontsize=9, loc="left")
    name_lines(axes, ends)


def _curve(
    axes: Axes,
    index: int,
    group: Group,
    k: int | None,
    name: str,
    style: LineStyle,
    scale: float,
    text: str = "",
) -> list[End]:
    """Plot the means of `name`, `scale` times as large, in the look of the group that stands at `index`; return its end, if any."""
    rows = [row for row in group.rows if row.steps == k]
    points = [(row.pairs, mean * scale) for row in rows if (mean := row.mean(name))]
    if not points:
        return []
    colour, marker = look(index)
    axes.plot(*zip(*points, strict=True), color=colour, ls=style, lw=1.6, marker=marker, ms=4)
    return [(*points[-1], text, colour)]


def controls(groups: Sequence[Group]) -> Figure:
    """Plot the exact match of each group at its own N and least K: from its state, under the controls, and from the context."""
    rows = [(group, own) for group in groups if (own := own_row(group))]
    figure, axes = plt.subplots(figsize=(7.2, 1.1 + 0.45 * len(rows)), layout="constrained")
    shown = {
        "exact_match": ("o", "its own state"),
        "zero_state": ("X", "zeros"),
        "shuffled_state": ("D", "another context's state"),
        "context_visible": ("|", "context visible, no state"),
    }
    for place, (name, (marker, text)) in enumerate(shown.items()):
        shift = 0.12 * (place - 1.5)
        values = [(row.mean(name), y) for y, (_, row) in enumerate(rows)]
        points = [(x, y + shift) for x, y in values if x is not None]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.scatter(xs, ys, s=60, marker=marker, color=COLOURS[place], label=text, clip_on=False)
    names = [f"{group.name}, N={row.pairs}{_steps(row.steps)}" for group, row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlabel="exact match", xlim=(0, 1), ylim=(max(len(rows), 1) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(frameon=False, fontsize=8, ncols=4, loc="outside upper right")
    return plain(figure)


def own_row(group: Group, most: bool = False) -> Row | None:
    """Return the row at the N that the group was trained on and its least K, or the K that recalls most; None if it was
    not measured.
    """
    rows = [row for row in group.rows if row.pairs == group.pairs]
    if most:
        return max(rows, key=lambda row: row.mean("exact_match") or 0.0, default=None)
    return next(iter(rows), None)


def _steps(k: int | None) -> str:
    return "" if k is None else f", K={k}"


def _all_steps(groups: Sequence[Group]) -> list[int]:
    return sorted({k for group in groups for k in group.columns if k is not None})


def _figure() -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(7.6, 4.2), layout="constrained")


def _draw(
    axes: Axes,
    group: Group,
    looks: tuple[str, str],
    line: Line,
    name: str,
    text: str,
    style: LineStyle = "-",
) -> list[End]:
    """Draw means as a line; least to most of the runs as bars; the interval as a band; crosses on the axis where runs
    diverged. Hollow markers: few seeds. Return the line's end, if any.
    """
    colour, marker = looks
    points = [(x, spread) for x, row in sorted(line, key=_place) if (spread := row.figures[name])]
    xs, means = [x for x, _ in points], [spread.mean for _, spread in points]
    if group.baseline:
        style, marker = _DASHES[group.writer], ""
    fill = "white" if group.few else colour
    axes.plot(xs, means, color=colour, ls=style, lw=1.6, marker=marker, ms=5, mfc=fill)
    axes.vlines(xs, [s.least for _, s in points], [s.most for _, s in points], color=colour, lw=1.2)
    banded = [(x, s.interval) for x, s in points if s.interval]
    axes.fill_between(
        [x for x, _ in banded],
        [interval.low for _, interval in banded],
        [interval.high for _, interval in banded],
        color=colour,
        alpha=0.1,
        lw=0,
    )
    if lost := [x for x, row in line if row.diverged]:
        axes.plot(lost, [0] * len(lost), "x", color=colour, ms=8, mew=2, clip_on=False)
    return [(xs[-1], means[-1], text, colour)] if points else []


def _scale(axes: Axes, name: str) -> None:
    if name in SHARES:
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.set_ylim(bottom=0)


def _place(point: tuple[float, Row]) -> float:
    return point[0]


def _powers(axes: Axes, places: Sequence[int | float]) -> None:
    ticks = sorted(set(places))
    if not ticks:
        return
    axes.set_xscale("log", base=2)
    axes.set_xlim(ticks[0] / 1.1, ticks[-1] * 1.1)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
