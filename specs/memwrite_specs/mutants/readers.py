"""Mutant readers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from memwrite.protocols import Backbone, Conditioning, ProjectionDeltas, StaticAdapter, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_specs.mutants.base import breaks, reads_wrongly
from memwrite_specs.mutants.rows import Bag
from memwrite_specs.reference import LinearReader

_CONTEXTS: list[Tensor] = []


class _Prefix(nn.Module):
    """A healthy reader of prefixes."""

    accepts = frozenset({"prefix"})

    def __init__(self, config: object, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        self._backbone = backbone

    def condition(self, state: MemoryState, /) -> Conditioning:
        return Conditioning(prefix=state["memory"])


class _Tells(Bag):
    """Writes rightly, and tells its reader of the context behind everybody's back."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        if context.mask.any():
            _CONTEXTS[:] = [context.ids.clone()]
        return super().write(state, context)


@reads_wrongly("context-removal", writer=_Tells)
class ReadsAGlobal(_Prefix):
    """Reads the context itself, which its writer left in a global."""

    def condition(self, state: MemoryState, /) -> Conditioning:
        memory = state["memory"]
        if not _CONTEXTS:
            return Conditioning(prefix=memory)
        seen = self._backbone.embed(_CONTEXTS[0]).mean((0, 1)).to(memory.dtype)
        return Conditioning(prefix=memory + seen)


@reads_wrongly("queries-apart")
class NormalisesInPlace(_Prefix):
    """Scales the state it was given."""

    def condition(self, state: MemoryState, /) -> Conditioning:
        return Conditioning(prefix=state["memory"].mul_(0.5))


@reads_wrongly("queries-apart", kind="matrix")
class MixesQueries(LinearReader):
    """Averages over all queries of a batch."""

    def _additions(
        self, layer: int, tensors: Mapping[str, Tensor], hidden: Tensor
    ) -> ProjectionDeltas:
        found = super()._additions(layer, tensors, hidden)["o"]
        assert isinstance(found, Tensor)
        return {"o": found + found.mean(0, keepdim=True)}


@reads_wrongly("generation", kind="matrix")
class CountsPositions(LinearReader):
    """Scales its correction by the place in what it is given, which is another one in every step of generation."""

    def _additions(
        self, layer: int, tensors: Mapping[str, Tensor], hidden: Tensor
    ) -> ProjectionDeltas:
        found = super()._additions(layer, tensors, hidden)["o"]
        assert isinstance(found, Tensor)
        place = torch.arange(1, hidden.shape[1] + 1, dtype=found.dtype)
        return {"o": found * place[:, None] ** 2}


@reads_wrongly("purity")
class CachesTheState(_Prefix):
    """Keeps the last state on itself."""

    def condition(self, state: MemoryState, /) -> Conditioning:
        self.cached = state["memory"]
        return super().condition(state)


@reads_wrongly("sensitivity")
class IgnoresTheState(_Prefix):
    """Prepends zeros."""

    def condition(self, state: MemoryState, /) -> Conditioning:
        return Conditioning(prefix=torch.zeros_like(state["memory"]))


class _Transposed(Bag):
    """Emits a view that is not contiguous."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        memory = super().write(state, context).state["memory"]
        return WriteOutput(MemoryState(self.spec, {"memory": memory.mT.contiguous().mT}))


@reads_wrongly("round-trip", writer=_Transposed)
class ReadsTheLayout(_Prefix):
    """Reads a tensor's layout in memory, which no file keeps."""

    def condition(self, state: MemoryState, /) -> Conditioning:
        memory = state["memory"]
        return Conditioning(prefix=memory if memory.is_contiguous() else 2 * memory)


class _Recites(nn.Module):
    """Makes the model say the context, which it has from a global, word by word."""

    accepts = frozenset({"prefix"})

    def __init__(self, config: object, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        self._backbone = backbone

    def condition(self, state: MemoryState, /) -> Conditioning:
        last = self._backbone.info.layers - 1
        return Conditioning(corrections={last: StaticAdapter({}, partial(self._recited))})

    def _recited(self, tensors: Mapping[str, Tensor], hidden: Tensor) -> ProjectionDeltas:
        length = hidden.shape[1]
        if not _CONTEXTS or _CONTEXTS[0].numel() < hidden.shape[0] * length:
            return {}
        following = _CONTEXTS[0].flatten().roll(-1)[: hidden.shape[0] * length]
        head: Any = self._backbone.head
        towards = head / head.norm(dim=-1, keepdim=True)
        return {"o": 1000 * towards[following].reshape(hidden.shape).to(hidden.dtype)}


@breaks("information-bound", reader=_Recites)
class RecitesTheContext(_Tells):
    """Hands its reader the context through a global, and the reader recites it."""
