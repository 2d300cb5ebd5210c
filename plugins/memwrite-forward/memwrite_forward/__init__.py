"""memwrite-forward: RMT's forward writer (arXiv 2207.06881)."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ImporterPlugin, WriterPlugin, hookimpl
from memwrite_forward import rmt
from memwrite_forward.config import ForwardConfig
from memwrite_forward.writer import ForwardWriter

__all__ = ["FORWARD", "ForwardConfig", "ForwardWriter", "memwrite_importers", "memwrite_writers"]


FORWARD = WriterPlugin(
    api=2,
    name="forward",
    summary="K forward passes over [M; context; M], into M prefix vectors",
    config=ForwardConfig,
    build=ForwardWriter,
    emits="prefix",
    capabilities=Capabilities(differentiable=True),
    steps="steps",
    slots="slots",
)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the forward writer."""
    return [FORWARD]


@hookimpl
def memwrite_importers() -> Sequence[ImporterPlugin]:
    """Declare the importer of the authors' own checkpoints."""
    return [
        ImporterPlugin(
            api=2,
            name="rmt",
            summary="RMT checkpoints of GradMem's own scripts",
            load=rmt.load,
        )
    ]
