"""The reader: the vectors of a prefix state are scaled and prepended to the query."""

import torch
from torch import nn

from memwrite.protocols import Backbone, Conditioning
from memwrite.state import MemoryState, StateSpec
from memwrite_my_writer.config import MyConfig


class MyReader(nn.Module):
    """Prepends a prefix, each dimension with a learned scale."""

    accepts = frozenset({"prefix"})

    def __init__(self, config: MyConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        width = spec.shapes["memory"][1]
        self.scale = nn.Parameter(torch.full((width,), config.scale, dtype=spec.dtype))

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Prepend the scaled vectors."""
        return Conditioning(prefix=state["memory"] * self.scale)
