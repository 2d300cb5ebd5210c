"""Inner steps run anew in the backward pass, so that the memory that training takes does not grow with K."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

#: What one inner step makes of its variables and the context's embeddings: the new variables, each example's
#: loss (B,) and each token's lead (B, T). The flag says whether all of it can be differentiated.
Step = Callable[[list[Tensor], Tensor, bool], tuple[list[Tensor], Tensor, Tensor]]


def recomputed(
    step: Step, fast: list[Tensor], embeddings: Tensor, weights: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """`step(fast, embeddings, True)`, of which nothing but the arguments is kept for the backward pass.

    Args:
        step: pure, but for the weights that it uses and the random numbers that it draws.
        fast: variables (B, ...).
        embeddings: (B, T, D).
        weights: all leaves that `step` uses and that may want a gradient.
    """
    *moved, loss, lead = _Recomputed.apply(step, len(fast), *fast, embeddings, *weights)  # type: ignore[no-untyped-call]
    return moved, loss, lead


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, count: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.step, ctx.count = step, count
        ctx.random = torch.get_rng_state(), get_device_states(*inputs)
        ctx.save_for_backward(*inputs)
        moved, loss, lead = _run(step, inputs[: count + 1], False)[1]
        ctx.mark_non_differentiable(lead)
        return (*(tensor.detach() for tensor in moved), loss.detach(), lead)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        inputs = ctx.saved_tensors
        state, (devices, states) = ctx.random
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(state)
            set_device_states(devices, states)
            leaves, (moved, loss, _) = _run(ctx.step, inputs[: ctx.count + 1], True)
        needed = ctx.needs_input_grad[2:]
        wanted = [
            tensor
            for tensor, need in zip([*leaves, *inputs[len(leaves) :]], needed, strict=True)
            if need
        ]
        found = iter(torch.autograd.grad([*moved, loss], wanted, outer[:-1], allow_unused=True))
        return None, None, *(next(found) if need else None for need in needed)


def _run(
    step: Step, inputs: Sequence[Tensor], keep: bool
) -> tuple[list[Tensor], tuple[list[Tensor], Tensor, Tensor]]:
    """Copies of the inputs that gradients stop at, and what the step makes of them."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        *fast, embeddings = leaves
        return leaves, step(fast, embeddings, keep)
