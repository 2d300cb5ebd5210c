"""memwrite-compress: learnt compression tokens behind a context (gist, CCM, AutoCompressor, ICAE, 500xCompressor)."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, WriterPlugin, hookimpl
from memwrite_compress.config import CompressionConfig
from memwrite_compress.gist import GistWriter

__all__ = ["GIST", "CompressionConfig", "GistWriter", "memwrite_writers"]

GIST = WriterPlugin(
    api=2,
    name="gist",
    summary="key-values of m learnt tokens behind the context",
    config=CompressionConfig,
    build=GistWriter,
    emits="keyvalue",
    capabilities=Capabilities(differentiable=True),
    slots="slots",
)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the compressors."""
    return [GIST]
