"""Mutants whose numbers are wrong, or come from elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memwrite.protocols import Backbone, Conditioning, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_specs.mutants.base import breaks
from memwrite_specs.mutants.rows import Bag
from memwrite_specs.reference import SlotsConfig


@breaks("sensitivity")
class WritesNothing(Bag):
    """Gives back the state it was given."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return WriteOutput(state)


@breaks("sensitivity")
class WritesItsLengthOnly(Bag):
    """Writes how long the context is, and nothing of what it says."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        length = context.lengths[:, None, None].to(self.dtype)
        return self.added(state, length * self.scale.expand(1, self.slots, -1))


@breaks("determinism")
class DrawsNoise(Bag):
    """Adds noise from the global random state, which it puts back."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        with torch.random.fork_rng(devices=[]):
            sums = self.sums(context)
            noise = torch.randn_like(sums) * (sums != 0)
        return self.added(state, sums + 0.01 * noise)


@breaks("finite")
class OverflowsOnLongInput(Bag):
    """Divides by zero from 50 tokens on."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, self.sums(context) / (1.0 * (context.lengths < 50))[:, None, None])


@breaks("finite")
class Explodes(Bag):
    """Squares its state with every write."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        memory = state["memory"]
        return self.added(state, 1e30 * memory.abs() * memory + self.sums(context))


@breaks("precision")
class TakesTheModelsDtype(Bag):
    """Keeps its state in the language model's half precision."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape = (config.slots, backbone.info.hidden_size)
        self.spec = StateSpec("prefix", {"memory": shape}, dtype=backbone.info.dtype)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        memory = state["memory"] + self.sums(context).to(self.spec.dtype)
        return WriteOutput(MemoryState(self.spec, {"memory": memory}))


@breaks("precision")
class AlwaysSingle(Bag):
    """Computes in float32 around a float64 model, too."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.dtype = torch.float32
        shape = (config.slots, backbone.info.hidden_size)
        self.spec = StateSpec("prefix", {"memory": shape})
        self.scale = nn.Parameter(self.scale.detach().float())


@breaks("weights")
class KeepsWeightsToItself(Bag):
    """Has random weights that are no parameters, so that nobody saves them."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.hidden = (torch.randn_like(self.scale.data),)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, self.sums(context) * self.hidden[0])


@breaks("no-graph")
class KeepsItsGraph(Bag):
    """Switches gradients on, as one does for an inner loop, and does not drop the graph."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        with torch.enable_grad():
            return super().write(state, context)


@breaks("no-graph")
class NeedsGradMode(Bag):
    """Computes wrongly where gradients cannot be recorded."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, self.sums(context) * (1 + torch.is_inference_mode_enabled()))


@breaks("losses")
class AveragesItsLoss(Bag):
    """Gives every row the mean loss of the batch."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        written = super().write(state, context)
        size = written.state["memory"].square().mean()
        return WriteOutput(written.state, {"size": size.expand(context.ids.shape[0])})


@breaks("losses")
class TracesTheContext(Bag):
    """Hands the context out as its trace."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return WriteOutput(super().write(state, context).state, {}, {"ids": context.ids.T})


class IdsReader(nn.Module):
    """Prepends the embeddings of ids, as floats that a healthy memory would have made of them."""

    accepts = frozenset({"ids"})

    def __init__(self, config: object, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        self._width = backbone.info.hidden_size

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Return a prefix of the ids, scaled, the same along every dimension."""
        scaled = state["ids"].double() / 100
        return Conditioning(prefix=scaled[..., None].expand(-1, -1, self._width))


@breaks("context-erasure", kind="ids", reader=IdsReader)
class AliasesTheContext(Bag):
    """Its state is a view of the context's own tensor."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.spec = StateSpec("ids", {"ids": (1,)}, dtype=torch.int64)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        if not context.ids.shape[1]:
            return WriteOutput(state)
        if not context.mask[:, 0].all():
            kept = torch.where(context.mask[:, :1], context.ids[:, :1], state["ids"])
            return WriteOutput(MemoryState(self.spec, {"ids": kept}))
        return WriteOutput(MemoryState(self.spec, {"ids": context.ids[:, :1]}))


@breaks("usable")
class HoldsATensorThatIsNoBuffer(Bag):
    """Keeps a constant tensor as a plain attribute, which stays where it is when the memory is moved."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.shift = torch.ones(config.slots, 1, dtype=self.dtype)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, self.sums(context) * self.shift)


@breaks("usable")
class HoldsTensorsInAList(Bag):
    """Keeps its weights in a plain list, which torch does not look into."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.shifts = [torch.ones(1, dtype=self.dtype) for _ in range(2)]

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self.added(state, self.sums(context) * self.shifts[0])


@breaks("usable")
class OverridesAMethodOfModule(Bag):
    """Has a method `_apply` of its own, which torch calls to move and convert a module."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        return self._apply(state, context)

    def _apply(self, state: MemoryState, context: PackedTokens) -> WriteOutput:  # type: ignore[override]
        return super().write(state, context)


@breaks("usable")
class OverridesAnUncalledMethod(Bag):
    """Has a method `children` of its own, which only some users of torch call."""

    def children(self) -> Tensor:  # type: ignore[override]
        return self.scale


@breaks("usable")
class DependsOnTheDtype(Bag):
    """Has a weight of another size around a model of half precision, so that its run folder cannot be opened so."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if backbone.info.dtype is torch.bfloat16:
            self.scale = nn.Parameter(self.scale.detach()[:-1])


@breaks("usable")
class CannotBeTrained(Bag):
    """Changes its weights in place during a write, which a backward pass cannot follow."""

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        written = self.added(state, self.sums(context) * self.scale)
        with torch.no_grad():
            self.scale.mul_(1.0)
        return written
