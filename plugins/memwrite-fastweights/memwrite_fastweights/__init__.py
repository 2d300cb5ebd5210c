"""memwrite-fastweights: small networks that are trained while the context is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from memwrite.plugins import Capabilities, WriterPlugin, hookimpl
from memwrite.protocols import Backbone
from memwrite.state import StateKind
from memwrite_fastweights import kinds
from memwrite_fastweights.cell import Cell
from memwrite_fastweights.config import (
    EndToEndConfig,
    LactConfig,
    LatticeConfig,
    TitansConfig,
    TitansMlpConfig,
    TttConfig,
    TttMlpConfig,
)
from memwrite_fastweights.end_to_end import EndToEndWriter
from memwrite_fastweights.lact import LactCell
from memwrite_fastweights.lattice import LatticeCell
from memwrite_fastweights.titans import TitansCell
from memwrite_fastweights.ttt import TttCell
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
    kinds.MATRIX,
)
TITANS_MLP = _plugin(
    "titans-mlp", "the same, of networks of two matrices", TitansMlpConfig, TitansCell, kinds.MLP
)
TTT_LINEAR = _plugin(
    "ttt-linear",
    "linear maps trained online, in mini-batches, to tell a value less its key from the key",
    TttConfig,
    TttCell,
    kinds.TTT_LINEAR,
)
TTT_MLP = _plugin(
    "ttt-mlp", "the same, of networks of two layers", TttMlpConfig, TttCell, kinds.TTT_MLP
)
LACT = _plugin(
    "lact",
    "gated networks trained online, once per large chunk",
    LactConfig,
    LactCell,
    kinds.SWIGLU,
)
LATTICE = _plugin(
    "lattice",
    "slots of length 1, each of which takes on only what is orthogonal to it",
    LatticeConfig,
    LatticeCell,
    kinds.MATRIX,
)
TTT_E2E = WriterPlugin(
    api=2,
    name="ttt-e2e",
    summary="low-rank weights of MLPs, trained on the next-token loss of each chunk of the context",
    config=EndToEndConfig,
    build=EndToEndWriter,
    emits="lowrank",
    capabilities=Capabilities(streaming=True, differentiable=True),
    untrained=lambda config: "its states keep but a little of what the context says",
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kinds of state of small networks."""
    return [kinds.MLP, kinds.TTT_LINEAR, kinds.TTT_MLP, kinds.SWIGLU]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writers of fast weights."""
    return [TITANS, TITANS_MLP, TTT_LINEAR, TTT_MLP, LACT, LATTICE, TTT_E2E]
