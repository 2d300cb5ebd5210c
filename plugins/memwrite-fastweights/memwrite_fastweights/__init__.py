"""memwrite-fastweights: small networks that are trained while the context is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from memwrite.plugins import Capabilities, WriterPlugin, hookimpl
from memwrite.protocols import Backbone
from memwrite.state import StateKind
from memwrite_fastweights.cell import Cell
from memwrite_fastweights.config import TitansConfig, TitansMlpConfig
from memwrite_fastweights.kinds import MATRIX, MLP
from memwrite_fastweights.titans import TitansCell
from memwrite_fastweights.writer import FastWeightsWriter


def _plugin(
    name: str, summary: str, config: type, cell: Callable[..., Cell], kind: StateKind
) -> WriterPlugin:
    def build(params: Any, backbone: Backbone) -> FastWeightsWriter:
        return FastWeightsWriter(params, backbone, partial(cell, params))

    return WriterPlugin(
        api=2,
        name=name,
        summary=summary,
        config=config,
        build=build,
        emits=kind.name,
        capabilities=Capabilities(
            streaming=True, chunk_exact=True, differentiable=True, online=True
        ),
    )


TITANS = _plugin(
    "titans",
    "matrices trained online by gradient descent with momentum and forgetting",
    TitansConfig,
    TitansCell,
    MATRIX,
)
TITANS_MLP = _plugin(
    "titans-mlp", "the same, of networks of two matrices", TitansMlpConfig, TitansCell, MLP
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kinds of state of small networks."""
    return [MLP]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writers of fast weights."""
    return [TITANS, TITANS_MLP]
