"""The writer: every token adds the outer product of a value and a key to a matrix of every layer."""

import torch
from torch import nn

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, StateSpec, Tokens
from memwrite_my_writer.config import MyConfig


class MyWriter(nn.Module):
    """Fast weights: keys and values are linear maps of the embeddings, learned for each layer."""

    reserved_positions = 0  # positions of the model that a write takes besides the context's own

    def __init__(self, config: MyConfig, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, info, width = backbone, backbone.info, config.width
        dtype = info.state_dtype
        shapes = {"S": (info.layers, 1, width, width)}
        self.spec = StateSpec("matrix", shapes, tuple(range(info.layers)), dtype)
        maps = torch.randn(2, info.layers, width, info.hidden_size, dtype=dtype)
        self.maps = nn.Parameter(maps / info.hidden_size**0.5)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states of zeros."""
        return self.spec.zeros(batch_size, self.backbone.info.device)

    def write(self, state: MemoryState, context: Tokens, /) -> WriteOutput:
        """Add the outer products of all real tokens."""
        tokens = self.backbone.embed(context.ids).to(self.maps.dtype) * context.mask[..., None]
        keys, values = torch.einsum("nlkd,btd->nbltk", self.maps, tokens)
        added = (values.mT @ keys)[:, :, None]
        return WriteOutput(MemoryState(self.spec, {"S": state["S"] + added}))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Add the sums: that is the state of a memory that has read both contexts."""
        return MemoryState(self.spec, {"S": first["S"] + second["S"]})
