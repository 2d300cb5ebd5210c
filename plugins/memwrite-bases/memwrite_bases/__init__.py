"""memwrite-bases: memories that are the coefficients of a context on a fixed orthogonal basis."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, WriterPlugin, hookimpl
from memwrite_bases.hippo import HippoConfig, HippoWriter
from memwrite_bases.lavo import LavoConfig, LavoWriter

__all__ = [
    "HIPPO",
    "LAVO",
    "HippoConfig",
    "HippoWriter",
    "LavoConfig",
    "LavoWriter",
    "memwrite_writers",
]

HIPPO = WriterPlugin(
    api=2,
    name="hippo",
    summary="what each layer read as polynomials of time (HiPPO-LegS), online",
    config=HippoConfig,
    build=HippoWriter,
    emits="matrix",
    capabilities=Capabilities(streaming=True, chunk_exact=True, differentiable=True, online=True),
)

LAVO = WriterPlugin(
    api=2,
    name="lavo",
    summary="the mean key and value of each head, along fixed orthogonal directions (LAVO)",
    config=LavoConfig,
    build=LavoWriter,
    emits="keyvalue",
    capabilities=Capabilities(
        streaming=True, differentiable=True, order_free=True, mergeable=True, deletion=True
    ),
    slots="slots",
)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writers."""
    return [HIPPO, LAVO]
