"""The writer: the embedding of every token is added to one of a few slots, which are counted."""

import torch
from torch import nn

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, StateSpec, Tokens
from memwrite_my_writer.config import MyConfig


class MyWriter(nn.Module):
    """Sums of embeddings, each dimension with a learned scale, and how many tokens each of them is of."""

    reserved_positions = 0  # positions of the model that a write takes besides the context's own

    def __init__(self, config: MyConfig, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, width = backbone, backbone.info.hidden_size
        dtype = backbone.info.state_dtype
        shapes = {"sums": (config.slots, width), "counts": (config.slots,)}
        self.spec = StateSpec("my-kind", shapes, dtype=dtype)
        self.scale = nn.Parameter(torch.ones(width, dtype=dtype))

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states of zeros."""
        return self.spec.zeros(batch_size, self.backbone.info.device)

    def write(self, state: MemoryState, context: Tokens, /) -> WriteOutput:
        """Add every real token to the slot that its id names."""
        added = self.backbone.embed(context.ids) * self.scale * context.mask[..., None]
        slot = context.ids % state["counts"].shape[1]
        sums = state["sums"].scatter_add(1, slot[..., None].expand_as(added), added)
        counts = state["counts"].scatter_add(1, slot, context.mask.to(self.spec.dtype))
        return WriteOutput(MemoryState(self.spec, {"sums": sums, "counts": counts}))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Add the sums: that is the state of a memory that has read both contexts."""
        return MemoryState(self.spec, {n: t + second[n] for n, t in first.tensors.items()})
