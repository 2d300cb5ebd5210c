"""memwrite-delta: matrix states written by the gated delta rule and its relatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from memwrite.plugins import Capabilities, ImporterPlugin, WriterPlugin, hookimpl
from memwrite.protocols import Backbone
from memwrite_delta import delta_mem
from memwrite_delta.cells import Cell, DeltaCell, GatedDeltaCell, HebbianCell
from memwrite_delta.config import DeltaConfig, GatedDeltaConfig, HebbianConfig
from memwrite_delta.writer import MatrixWriter, warn_unbounded

__all__ = [
    "DELTA",
    "GATED_DELTA",
    "HEBBIAN",
    "DeltaConfig",
    "GatedDeltaConfig",
    "HebbianConfig",
    "MatrixWriter",
    "memwrite_importers",
    "memwrite_writers",
]


#: How to bound the state of each writer.
_REMEDIES = {
    "delta": "set update=lambda_outside with forgetting=coupled, or with forgetting=free and most_keep below 1",
    "hebbian": "set keep below 1",
    "gated-delta": "use writer delta with update=lambda_outside and forgetting=coupled",
}


def _plugin(name: str, summary: str, config: type, cell: Callable[..., Cell]) -> WriterPlugin:
    def build(params: Any, backbone: Backbone) -> MatrixWriter:
        if not params.bounded:
            warn_unbounded(name, _REMEDIES[name])
        return MatrixWriter(params, backbone, partial(cell, params))

    return WriterPlugin(
        api=2,
        name=name,
        summary=summary,
        config=config,
        build=build,
        emits="matrix",
        capabilities=Capabilities(
            streaming=True, chunk_exact=True, differentiable=True, online=True
        ),
    )


DELTA = _plugin(
    "delta", "δ-mem: matrices written by the gated delta rule, online", DeltaConfig, DeltaCell
)
HEBBIAN = _plugin(
    "hebbian", "fast weights: outer products of values and keys, online", HebbianConfig, HebbianCell
)
GATED_DELTA = _plugin(
    "gated-delta",
    "gated DeltaNet's rule on matrix states, online",
    GatedDeltaConfig,
    GatedDeltaCell,
)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the delta rule and two relatives."""
    return [DELTA, HEBBIAN, GATED_DELTA]


@hookimpl
def memwrite_importers() -> Sequence[ImporterPlugin]:
    """Declare the importer of δ-mem's own adapters."""
    return [
        ImporterPlugin(
            api=2,
            name="delta",
            summary="δ-mem's adapter folders, for a language model in --base",
            load=delta_mem.load,
            save=delta_mem.save,
        )
    ]
