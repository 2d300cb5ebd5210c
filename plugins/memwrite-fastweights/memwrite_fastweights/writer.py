"""The writer of fast weights: one scan, with a cell for each mechanism."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from memwrite.inference import online
from memwrite.modules.layers import chosen_layers
from memwrite.protocols import Backbone, Granularity, LayerInput, ScanOutput, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec, TensorSpec
from memwrite_fastweights.cell import Cell
from memwrite_fastweights.chunks import scan
from memwrite_fastweights.config import FastWeightsConfig


class FastWeightsWriter(nn.Module):
    """Trains a small network of each attention layer on what that layer sees, one chunk of tokens after another.

    An `OnlineWriter`: token t reads what the network answers after the tokens before t.

    Args:
        config: sizes and layers.
        backbone: whose layers are written from.
        cell: makes a layer's cell; of (width of the hidden states, dtype).

    Raises:
        ConfigError: the backbone has no such layer.
    """

    reserved_positions = 0
    granularity: Granularity = "token"

    def __init__(
        self,
        config: FastWeightsConfig,
        backbone: Backbone,
        cell: Callable[[int, torch.dtype], Cell],
    ) -> None:
        super().__init__()
        info = backbone.info
        layers = chosen_layers(config.layers, info)
        self._backbone = backbone
        self.cells = nn.ModuleDict(
            {str(layer): cell(info.hidden_size, info.state_dtype) for layer in layers}
        )
        one = self._cell(layers[0])
        tensors = {
            name: TensorSpec((len(layers), *x.shape), x.dtype) for name, x in one.empty().items()
        }
        self.spec = StateSpec(one.kind.name, tensors, layers, info.state_dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return the state of memories that have read nothing: their learned starts."""
        rows = [self._cell(layer).empty() for layer in self.spec.layers]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in self.spec.tensors}
        return MemoryState(
            self.spec, {n: x[None].repeat(batch_size, *[1] * x.ndim) for n, x in stacked.items()}
        )

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Read `context` without any reads of the state, and write it."""
        return online.run(self._backbone, self, None, context, state).written

    def scan(self, step: LayerInput, state: Mapping[str, Tensor], /, *, write: bool) -> ScanOutput:
        """See `OnlineWriter.scan`."""
        cell, queries = self._cell(step.layer), step.queries
        if not write:
            recall = cell.kind.recall
            assert recall is not None
            return ScanOutput(None if queries is None else recall(state, queries), state)
        tokens = cell(step.hidden.to(self.spec.dtype))
        reads, after = scan(cell.rule, tokens, queries, state, step.mask)
        return ScanOutput(reads, after, trace=lambda: _trace(after, cell.kind.required))

    def _cell(self, layer: int) -> Cell:
        return cast(Cell, self.cells[str(layer)])


def _trace(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the norm of the weights that are read."""
    weights = [state[name].detach().reshape(len(state[name]), -1) for name in names]
    return {"norm": torch.cat(weights, 1).norm(dim=1)}
