"""The oracle: one example, no batch, no padding, first-order SGD, in a loop a student can read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.protocols import Backbone


def write(
    backbone: Backbone,
    memory: Tensor,
    ids: list[int],
    steps: int,
    lr: float,
    clip_norm: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Write one context into one memory (M, D), by GradMem's equations.

    With a `window` W, each token sees those before it from the last multiple of W on that is at least W/4 back.
    """
    window = window or len(ids)
    for _ in range(steps):
        memory = memory.detach().requires_grad_()
        loss = torch.zeros((), dtype=memory.dtype)
        for position, target in enumerate(ids):
            start = max(0, (position - window // 4) // window * window)
            before = torch.tensor([ids[start:position]], dtype=torch.int64)
            inputs = torch.cat([memory[None], backbone.embed(before)], dim=1)
            hidden = backbone.forward(inputs).hidden[0, -1]
            loss = loss + F.cross_entropy(backbone.logits(hidden), torch.tensor(target)) / len(ids)
        (gradient,) = torch.autograd.grad(loss, memory)
        if clip_norm is not None and gradient.norm() > clip_norm:
            gradient = gradient * clip_norm / (gradient.norm() + 1e-6)
        memory = memory - lr * gradient
    return memory.detach()
