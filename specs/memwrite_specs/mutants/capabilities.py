"""Mutants that claim a capability they lack."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from memwrite.protocols import LayerInput, ScanOutput, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_specs.mutants.base import breaks
from memwrite_specs.mutants.rows import Bag
from memwrite_specs.reference import OuterWriter


@breaks("streaming", "streaming")
class WipesEarlierWrites(Bag):
    """Starts anew with every piece."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        read = context.mask.any(1)[:, None, None]
        memory = torch.where(read, self.sums(context), state["memory"])
        return WriteOutput(MemoryState(self.spec, {"memory": memory}))


@breaks("chunk-exact", "chunk-exact")
class AveragesEachPiece(Bag):
    """Adds the mean of each piece, so that it matters where a context is cut."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        count = context.lengths.clamp(min=1)[:, None, None]
        return self.added(state, self.sums(context) / count)


@breaks("order-free", "order-free")
class FadesWithEveryWrite(Bag):
    """Keeps nine tenths of what it knew, so that the last context counts most."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        keep = torch.where(context.mask.any(1), 0.9, 1.0)[:, None, None].to(self.dtype)
        memory = state["memory"] * keep + self.sums(context)
        return WriteOutput(MemoryState(self.spec, {"memory": memory}))


@breaks("mergeable", "mergeable")
class MergesTheMean(Bag):
    """Merges states into their mean."""

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        return MemoryState(self.spec, {"memory": (first["memory"] + second["memory"]) / 2})


@breaks("mergeable", "mergeable")
class MergesIntoTheFirst(Bag):
    """Merges rightly, but into the state it was given."""

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        first["memory"].add_(second["memory"])
        return MemoryState(self.spec, {"memory": first["memory"].clone()})


@breaks("deletion", "deletion")
class LeavesATrace(Bag):
    """Takes out nearly all of a context."""

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, -0.999 * self.sums(context))


@breaks("deletion", "deletion")
class ForgetsWhatIsAlike(Bag):
    """Clears the slots that a context fell to, with whatever else is there."""

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        hit = (self.sums(context) != 0).any(2, keepdim=True)
        return WriteOutput(MemoryState(self.spec, {"memory": state["memory"] * ~hit}))


@breaks("deletion", "deletion")
class ForgetsTheLast(Bag):
    """Forgets what it has written last, whatever it is asked to forget."""

    last: MemoryState | None = None

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        self.last = state
        return super().write(state, context)

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return WriteOutput(state if self.last is None else self.last)


@breaks("deletion", "deletion")
class ForgetsPaddingToo(Bag):
    """Takes out padding, which was never written."""

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        everything = PackedTokens(context.ids, torch.ones_like(context.mask))
        return self.added(state, -self.sums(everything))


@breaks("deletion", "deletion")
class ForgetsInPlace(Bag):
    """Forgets rightly, but in the state it was given."""

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        state["memory"].sub_(self.sums(context))
        return WriteOutput(MemoryState(self.spec, {"memory": state["memory"].clone()}))


@breaks("online-is-offline", "online")
class OnlyClaimsToBeOnline(Bag):
    """Has nothing that could be read while it writes."""


@breaks("differentiable", "differentiable")
class Detaches(Bag):
    """Cuts the graph of what it adds."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, self.sums(context).detach())


@breaks("differentiable", "differentiable")
class ForgetsTheState(Bag):
    """Cuts the graph of the state that it goes on from."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return super().write(state.detach(), context)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


@breaks("differentiable", "differentiable")
class GivesWrongGradients(Bag):
    """Has a backward of its own, which forgets a factor."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, _Scaled.apply(self.sums(context)))  # type: ignore[no-untyped-call]


class Outer(OuterWriter):
    """The healthy online writer, with places to break it at."""

    def scan_input(
        self, state: Mapping[str, Tensor], write: bool
    ) -> tuple[Mapping[str, Tensor], bool]:
        """Return what a scan starts from: the state, and whether it writes."""
        return state, write

    def scan_output(self, done: ScanOutput, queries: Tensor | None) -> ScanOutput:
        """Return what a scan gives back."""
        return done

    def scan(self, step: LayerInput, state: Mapping[str, Tensor], /, *, write: bool) -> ScanOutput:
        state, write = self.scan_input(state, write)
        done = super().scan(step, state, write=write)
        return self.scan_output(done, step.queries)


@breaks("chunk-exact", "chunk-exact", kind="matrix")
class FadesWithEveryCall(Outer):
    """Fades once for every call of its scan, not for every token."""

    def scan_input(
        self, state: Mapping[str, Tensor], write: bool
    ) -> tuple[Mapping[str, Tensor], bool]:
        return {"S": state["S"] * 0.9}, write


@breaks("online-is-offline", "online", kind="matrix")
class WritesWhileItOnlyReads(Outer):
    """Writes although writing is off."""

    def scan_input(
        self, state: Mapping[str, Tensor], write: bool
    ) -> tuple[Mapping[str, Tensor], bool]:
        return state, True


@breaks("online-is-offline", "online", kind="matrix")
class ReadsItsOwnToken(Outer):
    """Reads the state at the end of each call, so that a token sees what comes after it."""

    def scan_output(self, done: ScanOutput, queries: Tensor | None) -> ScanOutput:
        if queries is None:
            return done
        reads = torch.einsum("bhvk,bthk->bthv", done.state["S"], queries)
        return ScanOutput(reads, done.state)
