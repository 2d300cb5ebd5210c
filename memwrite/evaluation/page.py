"""What the reports share: the look of their plots, and one self-contained page from a template."""

from __future__ import annotations

import io
from pathlib import Path

from memwrite.utils.extras import extra

with extra("report"):
    import jinja2
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What the library would say of itself in an SVG file.
_METADATA = ("Date", "Creator", "Format", "Type")
INK, ACCENT, MUTED = "#1f2933", "#0b7285", "#adb5bd"


def render(template: Path, title: str, width: str, **values: object) -> bytes:
    """Make a page, in UTF-8, from a template that extends page.html; `width` is CSS, the widest that text may be."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = templates.get_template(template.name).render(title=title, width=width, **values)
    return page.encode()


def label(axes: Axes, text: str, x: float, y: float, offset: tuple[int, int]) -> None:
    """Put a small text beside the point (x, y), `offset` points from it."""
    axes.annotate(text, (x, y), offset, textcoords="offset points", fontsize=8, color=INK)


def plain(figure: Figure) -> Figure:
    """Remove the frame and draw a light grid."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e9ecef", lw=0.8)
        axes.set_axisbelow(True)
    return figure


def svg(figure: Figure) -> str:
    """Return the figure as an SVG element, the same for the same data, and close it."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "memwrite", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(_METADATA))
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
