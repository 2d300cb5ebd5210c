"""Ridge regression as a memory: sums over everything that was read, which can be added and taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from memwrite.errors import InputError
from memwrite.protocols import Backbone, ProjectionDeltas, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_regression.cells import RidgeCell, Writes
from memwrite_regression.config import RidgeConfig
from memwrite_regression.kind import condition_number, system
from memwrite_regression.writer import RegressionWriter


class RidgeWriter(RegressionWriter):
    """Adds the pairs of keys and values of a context to the sums S = Σ β v kᵀ and G = Σ β k kᵀ.

    A context is read by itself: the model sees neither the memory nor earlier contexts. So what it adds depends on nothing
    else, contexts may come in any order, two states merge by addition, and one context can be taken out again by
    subtraction: a `MergingWriter` and a `DeletingWriter`.
    """

    def __init__(self, config: RidgeConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone, RidgeCell)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Add what `context` says."""
        return _reported(_plus(state, self._sums(context)))

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Subtract what `context` says.

        Raises:
            InputError: the state has not read it, as shows where G + Λ/2 is not positive definite any more; that a state
                which has keys of every direction has not read it does not show.
        """
        after = _plus(state, self._sums(context), sign=-1)
        halved = {**after.tensors, "log_ridge": after["log_ridge"] - torch.tensor(2.0).log()}
        broken = torch.linalg.cholesky_ex(system(halved)).info.flatten(1).any(1)
        if bool(broken.any()):
            rows = broken.nonzero().flatten().tolist()
            raise InputError(
                f"the memory of row(s) {rows} has not read this context, or not as one write of its own: give it whole, "
                f"as it was written"
            )
        return _reported(after)

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Add the sums."""
        return _plus(first, second.tensors)

    def _sums(self, context: PackedTokens) -> dict[str, Tensor]:
        """Return S and G (B, L, H, ...) of the context alone, in float64."""
        listeners = {layer: _Listener(self.cell(layer), context.mask) for layer in self.spec.layers}
        self._backbone.forward(self._backbone.embed(context.ids), corrections=listeners)
        heard = [listener.sums for listener in listeners.values()]
        return {name: torch.stack([sums[name] for sums in heard], 1) for name in ("S", "G")}


class _Listener:
    """Adds up the writes of one layer during one run and changes nothing; a `LayerAdapter`."""

    def __init__(self, cell: nn.Module, mask: Tensor) -> None:
        self._cell, self._mask = cell, mask
        self.sums: dict[str, Tensor] = {}

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        dtype = next(self._cell.parameters()).dtype
        writes: Writes = self._cell(hidden.to(dtype)).at(self._mask)
        keys = writes.keys.double()
        weighted = writes.weight.double()[..., None] * keys
        self.sums = {
            "S": torch.einsum("bthv,bthk->bhvk", writes.values.double(), weighted),
            "G": torch.einsum("bthj,bthk->bhjk", keys, weighted),
        }
        return {}

    def rows(self, index: Tensor) -> _Listener:
        """Return the adapter of these rows."""
        return _Listener(self._cell, self._mask[index.to(self._mask.device)])


def _plus(state: MemoryState, sums: Mapping[str, Tensor], sign: int = 1) -> MemoryState:
    added = {
        name: (state[name].double() + sign * sums[name].double()).to(state[name].dtype)
        for name in ("S", "G")
    }
    return replace(state, tensors={**state.tensors, **added})


def _reported(state: MemoryState) -> WriteOutput:
    """Return the state with its condition number, unless it is trained, where nobody looks at it."""
    if torch.is_grad_enabled():
        return WriteOutput(state)
    return WriteOutput(
        state, trace={"condition": condition_number(state.tensors).flatten(1).amax(1)[None]}
    )
