"""The demo's report: one self-contained HTML page with its plots, and the figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from memwrite.config import to_dict
from memwrite.demo.article import ArticleResults
from memwrite.demo.measure import Results
from memwrite.demo.pairs import PairResults
from memwrite.evaluation.page import ACCENT, INK, MUTED, label, plain, render, svg
from memwrite.evaluation.recall import differences
from memwrite.utils.atomic import write_bytes
from memwrite.utils.extras import extra

with extra("report"):
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter


def save_report(
    results: Results, pairs: Sequence[PairResults], article: ArticleResults | None, folder: Path
) -> None:
    """Write report.html and report.json into `folder`; without the article's part where there is none."""
    page = render(
        Path(__file__).with_name("report.html"),
        "memwrite demo",
        "46rem",
        results=results,
        pairs=pairs,
        article=article,
        value_plot=article and svg(_value_plot(article)),
        pieces=differences(results.text, results.main.text),
        steps_plot=svg(_steps_plot(results)),
        vectors_plot=svg(_vectors_plot(results)),
        config=json.dumps(results.as_dict()["config"], indent=2),
        machine=results.as_dict()["machine"],
    )
    write_bytes(folder / "report.html", page)
    data = {
        **results.as_dict(),
        "article": to_dict(article) if article else None,
        "pairs": [{**to_dict(p), "right": p.right} for p in pairs],
    }
    write_bytes(folder / "report.json", json.dumps(data, indent=1).encode())


def _value_plot(article: ArticleResults) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    whole = article.kept[-1].state_bytes
    shown = [(k, k.value) for k in article.kept if k.state_bytes and k.value is not None]
    for kept, value in shown:
        axes.plot(kept.state_bytes / whole, value, "o", color=ACCENT, ms=5)
        label(axes, kept.name, kept.state_bytes / whole, value, (-4, 8))
    for value, name in ((0.0, "no memory"), (1.0, "article in sight")):
        axes.axhline(value, color=INK, ls=":", lw=1)
        axes.annotate(
            name, (0, value), (3, 3), ("axes fraction", "data"), "offset points", fontsize=8
        )
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.2)
    axes.set(xlabel="bytes of state, as a share of the KV cache", ylabel="value kept")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return plain(figure)


def _steps_plot(results: Results) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    shades = plt.get_cmap("viridis")
    for index, point in enumerate(results.points):
        shade = shades(0.85 * index / max(len(results.points) - 1, 1))
        last = len(point.accuracy) - 1
        axes.plot(point.accuracy, color=shade, lw=1.6)
        axes.plot(last, point.accuracy[last], "o", color=shade, ms=4)
        label(axes, _vectors(point.vectors), last, point.accuracy[last], (7, -3))
    axes.set(xlabel="gradient steps", ylabel="tokens right, given those before", ylim=(0, 1.03))
    return _shares(figure)


def _vectors_plot(results: Results) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    vectors = [point.vectors for point in results.points]
    tokens = [point.accuracy[-1] for point in results.points]
    right = [point.recall.bytes_right for point in results.points]
    axes.plot(vectors, tokens, "o--", color=MUTED, lw=1.4, label="tokens, given those before")
    axes.plot(vectors, right, "o-", color=ACCENT, lw=1.8, label="bytes, decoded freely")
    for name, point, style in (
        ("full context", results.full_context, "-."),
        ("no memory", results.no_memory, ":"),
    ):
        share = point.recall.bytes_right
        axes.axhline(share, color=INK, ls=style, lw=1, label=f"{name}, bytes")
    for point in results.points:
        text = f"{results.bits_gained(point):.0f} bits"
        label(axes, text, point.vectors, point.accuracy[-1], (-6, 8))
    axes.set_xscale("log", base=2)
    axes.set_xticks(vectors, [str(v) for v in vectors])
    axes.set(xlabel="vectors", ylabel="recalled", ylim=(0, 1.12))
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return _shares(figure)


def _vectors(count: int) -> str:
    return f"{count} vector{'s' if count > 1 else ''}"


def _shares(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return plain(figure)
