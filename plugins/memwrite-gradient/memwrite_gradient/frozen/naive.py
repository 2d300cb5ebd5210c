"""The oracle: one context, given texts, token by token, with Adam written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from memwrite.protocols import Backbone, Conditioning


def distil(
    backbone: Backbone,
    start: list[Tensor],
    condition: Callable[[list[Tensor]], Conditioning],
    context: list[int],
    texts: list[list[int]],
    steps: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    settled: float = 1e-5,
) -> list[Tensor]:
    """Descend one memory on KL(model with context ‖ model with memory), the mean over the tokens of all texts but their
    first.

    Args:
        backbone: the model.
        start: the numbers that are descended.
        condition: says how they enter the model, as a batch of one.
        context: the token ids that the model with the context has in sight.
        texts: token ids.
        steps: Adam steps.
        lr: their size.
        betas: Adam's.
        eps: Adam's.
        settled: nats per token from which on nothing is moved.
    """
    params = start
    mean = [torch.zeros_like(param) for param in params]
    square = [torch.zeros_like(param) for param in params]
    for step in range(1, steps + 1):
        params = [param.detach().requires_grad_() for param in params]
        total, count = torch.zeros((), dtype=params[0].dtype), 0
        for text in texts:
            for end in range(1, len(text)):
                teacher = _next(backbone, Conditioning(), context + text[:end]).detach()
                student = _next(backbone, condition(params), text[:end])
                total = total + (teacher.exp() * (teacher - student)).sum()
                count += 1
        if (total / count).item() <= settled:
            break
        gradients = torch.autograd.grad(total / count, params)
        for i, gradient in enumerate(gradients):
            mean[i] = betas[0] * mean[i] + (1 - betas[0]) * gradient
            square[i] = betas[1] * square[i] + (1 - betas[1]) * gradient**2
            direction = mean[i] / (1 - betas[0] ** step)
            direction = direction / (square[i] / (1 - betas[1] ** step) + eps**2).sqrt()
            params[i] = params[i] - lr * direction
    return [param.detach() for param in params]


def _next(backbone: Backbone, memory: Conditioning, ids: list[int]) -> Tensor:
    """Return the log-probabilities (V,) of the token after `ids`."""
    embeddings = backbone.embed(torch.tensor([ids]))
    if memory.prefix is not None:
        embeddings = torch.cat([memory.prefix, embeddings], 1)
    hidden = backbone.forward(embeddings, past=memory.key_values).hidden[0, -1]
    return backbone.logits(hidden).log_softmax(-1)
