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
        dtype = torch.promote_types(backbone.info.dtype, torch.float32)
        self.spec = StateSpec("prefix", {"memory": (config.slots, width)}, dtype=dtype)
        self.scale = nn.Parameter(torch.ones(width, dtype=dtype))

    def init(self, batch_size: int, /) -> MemoryState:
        """Zeros."""
        zeros = self.scale.new_zeros(batch_size, *self.spec.shapes["memory"])
        return MemoryState(self.spec, {"memory": zeros})

    def write(self, state: MemoryState, context: Tokens, /) -> WriteOutput:
        """Adds every real token to the slot that its id names."""
        added = self.backbone.embed(context.ids) * self.scale * context.mask[..., None]
        slot = (context.ids % state["memory"].shape[1])[..., None].expand_as(added)
        memory = state["memory"].scatter_add(1, slot, added)
        return WriteOutput(MemoryState(self.spec, {"memory": memory}))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """What has read both contexts has the sum of both sums."""
        return MemoryState(self.spec, {"memory": first["memory"] + second["memory"]})
