"""memwrite-bases: memories that are the coefficients of a context on a fixed orthogonal basis."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, WriterPlugin, hookimpl
from memwrite_bases.hippo import HippoConfig, HippoWriter

__all__ = ["HIPPO", "HippoConfig", "HippoWriter", "memwrite_writers"]

HIPPO = WriterPlugin(
    api=2,
    name="hippo",
    summary="what each layer read as polynomials of time (HiPPO-LegS), online",
    config=HippoConfig,
    build=HippoWriter,
    emits="matrix",
    capabilities=Capabilities(streaming=True, chunk_exact=True, differentiable=True, online=True),
)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writers."""
    return [HIPPO]
