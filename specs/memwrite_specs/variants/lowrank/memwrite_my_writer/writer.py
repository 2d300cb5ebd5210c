"""The writer: the embedding of every token is added to one of the rows that a query projection listens to."""

import torch
from torch import nn

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, StateSpec, Tokens
from memwrite_my_writer.config import MyConfig


class MyWriter(nn.Module):
    """Low-rank weights B A of every query projection: A holds sums of embeddings, B is learned."""

    reserved_positions = 0  # positions of the model that a write takes besides the context's own

    def __init__(self, config: MyConfig, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, info, rank = backbone, backbone.info, config.rank
        dtype = info.state_dtype
        shapes = {
            "A.q": (info.layers, rank, info.hidden_size),
            "B.q": (info.layers, info.heads * info.head_dim, rank),
        }
        self.spec = StateSpec("lowrank", shapes, tuple(range(info.layers)), dtype)
        self.out = nn.Parameter(torch.randn(shapes["B.q"], dtype=dtype) / 8)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states with zeros in A, and the learned B."""
        zeros = self.spec.zeros(batch_size, self.backbone.info.device)["A.q"]
        out = self.out.expand(batch_size, -1, -1, -1).clone()
        return MemoryState(self.spec, {"A.q": zeros, "B.q": out})

    def write(self, state: MemoryState, context: Tokens, /) -> WriteOutput:
        """Add every real token to the row that its id names, in every layer."""
        rows = state["A.q"]
        added = self.backbone.embed(context.ids).to(rows.dtype) * context.mask[..., None]
        place = nn.functional.one_hot(context.ids % rows.shape[2], rows.shape[2]).to(rows.dtype)
        sums = (place.mT @ added)[:, None]
        return WriteOutput(MemoryState(self.spec, {"A.q": rows + sums, "B.q": state["B.q"]}))
