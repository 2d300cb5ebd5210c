"""memwrite-gradient: GradMem's gradient writer (arXiv 2603.13875), from one meta-learnt step to cramming."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ImporterPlugin, WriterPlugin, hookimpl
from memwrite_gradient import gradmem as official
from memwrite_gradient.config import GradientConfig
from memwrite_gradient.writer import GradientWriter

__all__ = ["GRADIENT", "GradientConfig", "GradientWriter", "memwrite_importers", "memwrite_writers"]


GRADIENT = WriterPlugin(
    api=2,
    name="gradient",
    summary="K gradient steps on the context's reconstruction loss, into M prefix vectors",
    config=GradientConfig,
    build=GradientWriter,
    emits="prefix",
    capabilities=Capabilities(differentiable=True),
    steps="steps",
    max_steps="most_steps",
    slots="slots",
)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the gradient writer."""
    return [GRADIENT]


@hookimpl
def memwrite_importers() -> Sequence[ImporterPlugin]:
    """Declare the importer of the authors' own checkpoints."""
    return [
        ImporterPlugin(
            api=2,
            name="gradmem",
            summary="checkpoints of GradMem's own scripts",
            load=official.load,
        )
    ]
