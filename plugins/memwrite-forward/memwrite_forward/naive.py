"""The oracle: one example, no batch, no padding, no options, in a loop a student can read."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.protocols import Backbone


def write(backbone: Backbone, memory: Tensor, ids: list[int], steps: int) -> Tensor:
    """Write one context into one memory (M, D), by RMT's equation 2."""
    context = backbone.embed(torch.tensor([ids], dtype=torch.int64))
    for _ in range(steps):
        inputs = torch.cat([memory[None], context, memory[None]], dim=1)
        memory = backbone.forward(inputs).hidden[0, -len(memory) :]
    return memory
