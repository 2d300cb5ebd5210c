"""The writer: the embedding of every token is added to one of a few slots."""

import torch
from torch import nn

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, StateSpec, Tokens
from memwrite_my_writer.config import MyConfig


class MyWriter(nn.Module):
    """Sums of embeddings, each dimension with a learned scale."""

    reserved_positions = 0  # positions of the model that a write takes besides the context's own

    def __init__(self, config: MyConfig, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, width = backbone, backbone.info.hidden_size
        dtype = backbone.info.state_dtype
        self.spec = StateSpec("prefix", {"memory": (config.slots, width)}, dtype=dtype)
        self.scale = nn.Parameter(torch.ones(width, dtype=dtype))

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states of zeros."""
        return self.spec.zeros(batch_size, self.backbone.info.device)

    def write(self, state: MemoryState, context: Tokens, /) -> WriteOutput:
        """Add every real token to the slot that its id names."""
        added = self.backbone.embed(context.ids) * self.scale * context.mask[..., None]
        slot = (context.ids % state["memory"].shape[1])[..., None].expand_as(added)
        memory = state["memory"].scatter_add(1, slot, added)
        return WriteOutput(MemoryState(self.spec, {"memory": memory}))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Add the sums: that is the state of a memory that has read both contexts."""
        return MemoryState(self.spec, {"memory": first["memory"] + second["memory"]})
