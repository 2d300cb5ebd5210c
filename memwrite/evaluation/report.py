"""The demo's report: one self-contained HTML page with its plots, and the figures as JSON."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import jinja2
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from memwrite.evaluation.demo import Results
from memwrite.evaluation.recall import differences
from memwrite.storage import write_bytes

_TEMPLATE = Path(__file__).with_name("report.html")
_INK, _ACCENT, _MUTED = "#1f2933", "#0b7285", "#adb5bd"


def save_report(results: Results, folder: Path) -> None:
    """Write report.html and report.json into `folder`."""
    page = jinja2.Template(_TEMPLATE.read_text(encoding="utf-8"), autoescape=True).render(
        results=results,
        pieces=differences(results.text, results.main.text),
        steps_plot=_png(_steps_plot(results)),
        vectors_plot=_png(_vectors_plot(results)),
        config=json.dumps(results.as_dict()["config"], indent=2),
        machine=results.as_dict()["machine"],
    )
    write_bytes(folder / "report.html", page.encode())
    write_bytes(folder / "report.json", json.dumps(results.as_dict(), indent=1).encode())


def _steps_plot(results: Results) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    shades = [plt.get_cmap("viridis")(0.85 * i / max(len(results.points) - 1, 1)) for i in range(9)]
    for point, shade in zip(results.points, shades, strict=False):
        steps = range(len(point.accuracy))
        axes.plot(steps, point.accuracy, color=shade, label=f"{point.vectors}", lw=1.6)
        axes.plot(steps[-1:], point.accuracy[-1:], "o", color=shade, ms=4)
    axes.set(xlabel="gradient steps", ylabel="tokens right", ylim=(0, 1.03))
    axes.legend(title="vectors", frameon=False, loc="lower right")
    return _plain(figure)


def _vectors_plot(results: Results) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    vectors = [point.vectors for point in results.points]
    right = [point.recall.bytes_right for point in results.points]
    for name, point in (("full context", results.full_context), ("no memory", results.no_memory)):
        axes.axhline(point.recall.bytes_right, color=_MUTED, ls="--", lw=1)
        axes.annotate(name, (vectors[0], point.recall.bytes_right), (0, 3), color=_INK, fontsize=8,
                      textcoords="offset points")  # fmt: skip
    axes.plot(vectors, right, "o-", color=_ACCENT, lw=1.8)
    for point in results.points:
        axes.annotate(
            f"{results.bits_gained(point):.0f} bits",
            (point.vectors, point.recall.bytes_right),
            (5, -12),
            textcoords="offset points",
            fontsize=8,
            color=_INK,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(vectors, [str(v) for v in vectors])
    axes.set(xlabel="vectors", ylabel="bytes recalled", ylim=(0, 1.08))
    return _plain(figure)


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", color="#e9ecef", lw=0.8)
        axes.set_axisbelow(True)
    return figure


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
