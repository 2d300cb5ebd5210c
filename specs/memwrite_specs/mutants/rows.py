"""Mutants whose rows meet, or whose padding is something."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_specs.mutants.base import breaks
from memwrite_specs.reference import BagWriter, SlotsConfig


class Bag(BagWriter):
    """The healthy writer that most mutants are made of."""

    def added(self, state: MemoryState, more: Tensor) -> WriteOutput:
        """Return the state with `more` (B, M, D) added to its memory."""
        return WriteOutput(MemoryState(self.spec, {"memory": state["memory"] + more}))


@breaks("batch-invariance")
class AveragesOverTheBatch(Bag):
    """Subtracts the mean of all rows, as a batch norm would."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        sums = self.sums(context)
        return self.added(state, sums - sums.mean(0) / 2)


@breaks("batch-invariance")
class LeaksTheNeighbour(Bag):
    """Adds a little of the next row's context."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        sums = self.sums(context)
        return self.added(state, sums + 0.01 * sums.roll(1, 0))


@breaks("padding-invariance")
class IgnoresTheMask(Bag):
    """Writes padding like real tokens."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        everything = PackedTokens(context.ids, torch.ones_like(context.mask))
        return self.added(state, self.sums(everything) * context.mask.any(1)[:, None, None])


@breaks("batch-invariance")
class CountsPadding(Bag):
    """Divides by the width of the batch in place of the row's own length."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, self.sums(context) / max(context.ids.shape[1], 1))


@breaks("empty-write")
class StumblesOverEmptyRows(Bag):
    """Divides by the length of the shortest row, which may be none."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, self.sums(context) / context.lengths.min())


@breaks("capacity")
class Grows(Bag):
    """Keeps one more slot for every token."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        embeddings = self.backbone.embed(context.ids).to(self.dtype) * context.mask[..., None]
        memory = torch.cat([state["memory"], embeddings], 1)
        spec = StateSpec("prefix", {"memory": tuple(memory.shape[1:])}, dtype=self.dtype)
        return WriteOutput(MemoryState(spec, {"memory": memory}))


@breaks("capacity")
class GrowsBehindItsTensor(Bag):
    """Gives a view of a tensor that also holds the embeddings of the whole context."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        embeddings = self.backbone.embed(context.ids).to(self.dtype)
        everything = torch.cat([state["memory"] + self.sums(context), embeddings], 1)
        return WriteOutput(MemoryState(self.spec, {"memory": everything[:, : self.slots]}))


@breaks("capacity")
class HidesBehindItsTensor(Bag):
    """Gives a view of a tensor that has room for more, always as much."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        memory = state["memory"] + self.sums(context)
        both = torch.cat([memory, memory.flip(0)], 1)
        return WriteOutput(MemoryState(self.spec, {"memory": both[:, : self.slots]}))


@breaks("isolation")
class BlanksItsContext(Bag):
    """Overwrites the context it was given."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        written = super().write(state, context)
        context.ids.zero_()
        return written


@breaks("batch-invariance")
class LeaksWhenItGoesOn(Bag):
    """Adds a little of the next row's memory to every row, which an empty memory does not show."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, self.sums(context) + 0.01 * state["memory"].roll(1, 0))


@breaks("isolation")
class WritesInPlace(Bag):
    """Adds to the state it was given."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        state["memory"].add_(self.sums(context))
        return WriteOutput(state)


@breaks("sessions")
class NeverForgets(Bag):
    """Starts from what it wrote last: a reset session, or a new one, knows another's text."""

    def init(self, batch_size: int, /) -> MemoryState:
        last: Tensor | None = getattr(self, "last", None)
        empty = super().init(batch_size)
        if last is None or last.shape[0] != batch_size:
            return empty
        return MemoryState(self.spec, {"memory": last.clone()})

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        written = super().write(state, context)
        self.last = written.state["memory"].detach()
        return written


@breaks("interleaving")
class KeepsScratchOnItself(Bag):
    """Puts the mask aside on the module while the language model runs."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        self.scratch = context
        self.backbone.embed(context.ids)
        written = super().write(state, self.scratch)
        del self.scratch
        return written

    def __delattr__(self, name: str) -> None:
        self.__dict__.pop(name, None)


@breaks("contract")
class DeclaresAnotherKind(Bag):
    """Emits states of kind "lowrank" while its plugin says "prefix"."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape = (backbone.info.layers, config.slots, backbone.info.hidden_size)
        self.spec = StateSpec("lowrank", {"A.q": shape}, dtype=self.dtype)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        more = self.sums(context)[:, None]
        return WriteOutput(MemoryState(self.spec, {"A.q": state["A.q"] + more}))
