"""The oracle: one context, given texts, token by token, with Adam written out, and the best memory kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from memwrite.protocols import Backbone, Conditioning


def distil(
    backbone: Backbone,
    start: list[Tensor],
    shares: list[float],
    condition: Callable[[list[Tensor]], Conditioning],
    context: list[int],
    texts: list[list[int]],
    held_out: list[list[int]],
    steps: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    settled: float = 1e-5,
    checks: int = 4,
) -> list[Tensor]:
    """Descend one memory on KL(model with context ‖ model with memory), the mean over the tokens of all texts but their
    first.

    Args:
        backbone: the model.
        start: the numbers that are descended.
        shares: of the step size, for each tensor of them.
        condition: says how they enter the model, as a batch of one.
        context: the token ids that the model with the context has in sight.
        texts: token ids.
        held_out: likewise; the memory that is best on them is returned. (Quotes are another set of such texts.)
        steps: Adam steps.
        lr: their size, as a share of the root mean square of the last two axes.
        betas: Adam's.
        eps: Adam's.
        settled: nats per token from which on nothing is moved; the share of the context's worth that a better memory gains.
        checks: how often memories are compared.
    """

    def mean(memory: Conditioning, some: list[list[int]]) -> Tensor:
        total, count = torch.zeros((), dtype=start[0].dtype), 0
        for text in some:
            for end in range(1, len(text)):
                teacher = _next(backbone, Conditioning(), context + text[:end]).detach()
                student = _next(backbone, memory, text[:end])
                total = total + (teacher.exp() * (teacher - student)).sum()
                count += 1
        return total / count

    params = best = start
    worth = mean(Conditioning(), held_out).item() + settled
    least = mean(condition(start), held_out).item() / worth
    first = [torch.zeros_like(param) for param in params]
    square = [torch.zeros_like(param) for param in params]
    for step in range(1, steps + 1):
        params = [param.detach().requires_grad_() for param in params]
        loss = mean(condition(params), texts)
        gradients = torch.autograd.grad(loss, params)
        for i, gradient in enumerate(gradients):
            first[i] = betas[0] * first[i] + (1 - betas[0]) * gradient
            square[i] = betas[1] * square[i] + (1 - betas[1]) * gradient**2
            direction = first[i] / (1 - betas[0] ** step)
            direction = direction / (square[i] / (1 - betas[1] ** step) + eps**2).sqrt()
            size = shares[i] * (start[i] ** 2).mean((-2, -1), keepdim=True).sqrt()
            if loss.item() > settled:
                params[i] = params[i] - lr * size * direction
        if step * checks // steps > (step - 1) * checks // steps:
            found = mean(condition(params), held_out).item() / worth
            if found < least - settled:
                best, least = params, found
    return [param.detach() for param in best]


def _next(backbone: Backbone, memory: Conditioning, ids: list[int]) -> Tensor:
    """Return the log-probabilities (V,) of the token after `ids`."""
    embeddings = backbone.embed(torch.tensor([ids]))
    if memory.prefix is not None:
        embeddings = torch.cat([memory.prefix, embeddings], 1)
    hidden = backbone.forward(embeddings, past=memory.key_values).hidden[0, -1]
    return backbone.logits(hidden).log_softmax(-1)
