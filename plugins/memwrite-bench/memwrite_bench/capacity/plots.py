"""The report's plots: one line for each group, in colours that the colour-blind can tell apart, named at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from memwrite.evaluation.page import MUTED, label, plain
from memwrite_bench.capacity.figures import SHARES
from memwrite_bench.capacity.summary import Group, Row
from memwrite_bench.lines import COLOURS, End, look, name_lines

_DASHES = {"full-context": (0, (6, 2)), "no-memory": (0, (1, 1.5))}

#: The rows that belong to a line, each with its place along the axis.
Line = list[tuple[float, Row]]


def against_pairs(groups: Sequence[Group], name: str, what: str, chance: bool = False) -> Figure:
    """Plot the figure `name` against N, one panel for each K; writers without K are in all of them.

    Args:
        groups: to draw.
        name: of `FIGURES`.
        what: on the axis, with its unit.
        chance: also draw 1/N.
    """
    columns: list[int | None] = [*_all_steps(groups)] or [None]
    figure, panels = _panels(len(columns), 4.6)
    ends = []
    for axes, k in zip(panels, columns, strict=True):
        lines: dict[int, Line] = {
            index: [(row.pairs, row) for row in group.rows if row.steps in (k, None)]
            for index, group in enumerate(groups)
        }
        ends.append(_draw(axes, groups, lines, name))
        if chance:
            places = sorted({x for line in lines.values() for x, _ in line})
            axes.plot(
                places,
                [1 / x for x in places],
                color=MUTED,
                lw=1,
                ls=":",
            )
            label(axes, "chance, 1/N", places[0], 1 / places[0], (4, 4))
        _powers(axes, [x for line in lines.values() for x, _ in line])
        axes.set(xlabel="pairs in the context, N", ylabel=what)
        if k is not None:
            axes.set_title(f"K = {k}", fontsize=10, loc="left")
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes, of_lines in zip(panels, ends, strict=True):
        axes.set_ylim(0, top)
        name_lines(axes, of_lines)
    return plain(figure)


def against_steps(groups: Sequence[Group], name: str, what: str) -> Figure | None:
    """Plot the figure `name` against K, each group at the N it was trained on; None if no group has two K's.

    Baselines and writers without K are level lines.
    """
    columns = _all_steps(groups)
    if not any(len(group.columns) > 1 for group in groups):
        return None
    figure, (axes,) = _panels(1, 6.4)
    lines: dict[int, Line] = {}
    for index, group in enumerate(groups):
        for row in group.rows:
            if row.pairs == group.pairs:
                places = columns if row.steps is None else [row.steps]
                lines.setdefault(index, []).extend((k, row) for k in places)
    called = [f"{group.name}, N={group.pairs}" for group in groups]
    name_lines(axes, _draw(axes, groups, lines, name, called))
    axes.set_xticks(columns)
    axes.set(xlabel="steps of a write, K", ylabel=what)
    return plain(figure)


def times(groups: Sequence[Group]) -> Figure:
    """Plot WRITE and READ of one context in milliseconds against N, beside the full context's, on logarithmic axes."""
    figure, panels = _panels(2, 5.2)
    for axes, name, beside, what in (
        (panels[0], "write", "prefill", "WRITE of one context, ms"),
        (panels[1], "read", "visible_read", "READ of one query, ms"),
    ):
        ends = []
        for index, group in enumerate(groups):
            for k in group.columns:
                text = group.name + _steps(k)
                ends += _curve(axes, index, group, k, name, "-", 1000, text)
            _curve(axes, index, group, group.columns[0], beside, "--", 1000)
        _beside_visible(axes, groups, ends)
        axes.set(ylabel=what)
    return plain(figure)


def sizes(groups: Sequence[Group]) -> Figure:
    """Plot the bytes of a state against N, beside those of the context's KV cache, on logarithmic axes."""
    figure, (axes,) = _panels(1, 6.4)
    ends = []
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
    style: str,
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


def own_row(group: Group) -> Row | None:
    """Return the row at the N that the group was trained on and its least K; None if it was not measured."""
    return next((row for row in group.rows if row.pairs == group.pairs), None)


def _steps(k: int | None) -> str:
    return "" if k is None else f", K={k}"


def _all_steps(groups: Sequence[Group]) -> list[int]:
    return sorted({k for group in groups for k in group.columns if k is not None})


def _panels(count: int, width: float) -> tuple[Figure, Sequence[Axes]]:
    size = (width * count + 1.2, 3.8)
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
    return figure, list(axes[0])


def _draw(
    axes: Axes,
    groups: Sequence[Group],
    lines: Mapping[int, Line],
    name: str,
    called: Sequence[str] | None = None,
) -> list[End]:
    """Draw means as lines; least to most of the runs as bars; the interval over training seeds as a band; crosses on the
    axis where runs diverged. Hollow markers: few seeds.
    """
    ends = []
    for index, line in lines.items():
        group = groups[index]
        colour, marker = look(index)
        points = [
            (x, spread) for x, row in sorted(line, key=_place) if (spread := row.figures[name])
        ]
        xs, means = [x for x, _ in points], [spread.mean for _, spread in points]
        style = _DASHES[group.writer] if group.baseline else "-"
        fill = "white" if group.few else colour
        marker = "" if group.baseline else marker
        axes.plot(xs, means, color=colour, ls=style, lw=1.6, marker=marker, ms=5, mfc=fill)
        axes.vlines(
            xs, [s.least for _, s in points], [s.most for _, s in points], color=colour, lw=1.2
        )
        banded = [(x, s.interval) for x, s in points if s.interval]
        axes.fill_between(
            [x for x, _ in banded],
            [interval.low for _, interval in banded],
            [interval.high for _, interval in banded],
            color=colour,
            alpha=0.12,
            lw=0,
        )
        lost = [x for x, row in line if row.diverged]
        if lost:
            axes.plot(lost, [0] * len(lost), "x", color=colour, ms=8, mew=2, clip_on=False)
        if points:
            ends.append((xs[-1], means[-1], called[index] if called else group.name, colour))
    if name in SHARES:
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.set_ylim(bottom=0)
    return ends


def _place(point: tuple[float, Row]) -> float:
    return point[0]


def _powers(axes: Axes, places: Sequence[int | float]) -> None:
    ticks = sorted(set(places))
    axes.set_xscale("log", base=2)
    axes.set_xlim(ticks[0] / 1.1, ticks[-1] * 1.1)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
