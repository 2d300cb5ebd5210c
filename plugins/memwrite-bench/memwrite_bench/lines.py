"""The look of lines in a plot, and their names at their ends."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

# Okabe and Ito's palette without its yellow, which is too pale for a line, and what differs from it in Tol's muted one.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"),
    *("#882255", "#999933", "#332288", "#44AA99", "#AA4499", "#661100", "#888888"),
)
_MARKERS = "osD^vP*"
_LABEL_GAP = 0.055

#: Where a line ends, its name and its colour.
End = tuple[float, float, str, str]


def look(index: int) -> tuple[str, str]:
    """Return colour and marker of the line with that number."""
    return COLOURS[index % len(COLOURS)], _MARKERS[index // len(COLOURS) % len(_MARKERS)]


def name_lines(axes: Axes, ends: Sequence[End]) -> None:
    """Write each line's name right of the panel, as high as its end, or as near as the other names allow."""
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((x, y))[1]) for x, y, _, _ in ends]
    for (x, y, text, colour), height in zip(ends, spread_apart(heights, _LABEL_GAP), strict=True):
        axes.annotate(
            text,
            (x, y),
            (1.03, height),
            textcoords="axes fraction",
            fontsize=8,
            color=colour,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.5,
                "ls": ":",
                "relpos": (0, 0.5),  # from where the name begins, not from beneath it
            },
        )


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move the heights as little as it takes, in order, so that no two are nearer than `gap` and none is below 0.

    Each crowd of neighbours that are too near is spread evenly about its middle, least squares by pooling
    (Barlow et al. 1972).
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    crowds: list[tuple[float, int]] = []  # of heights less the gaps below them: mean, members
    for rank, index in enumerate(order):
        middle, members = heights[index] - rank * gap, 1
        while crowds and crowds[-1][0] >= middle:
            other, many = crowds.pop()
            middle = (middle * members + other * many) / (members + many)
            members += many
        crowds.append((middle, members))
    spread = [middle for middle, members in crowds for _ in range(members)]
    moved = [0.0] * len(heights)
    for rank, index in enumerate(order):
        moved[index] = max(spread[rank], 0.0) + rank * gap
    return moved
