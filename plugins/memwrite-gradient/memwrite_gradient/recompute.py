"""Inner steps with a graph of their own: run anew in the backward pass, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

#: What a step gives: its new variables, each example's loss (B,) and each token's lead (B, T).
Stepped = tuple[list[Tensor], Tensor, Tensor]
#: Makes it of variables and the context's embeddings; the flag says whether it is to be differentiated.
Step = Callable[[list[Tensor], Tensor, bool], Stepped]


def apart(
    step: Step, fast: list[Tensor], embeddings: Tensor, weights: Sequence[Tensor], recompute: bool
) -> Stepped:
    """`step(fast, embeddings, True)`, whose graph begins at its arguments, as the compiler wants it.

    Args:
        step: pure, but for the weights that it uses and the random numbers that it draws.
        fast: variables (B, ...).
        embeddings: (B, T, D).
        weights: all leaves that `step` uses and that may want a gradient.
        recompute: keep no graph, and run the step once more in the backward pass.
    """
    *moved, loss, lead = _Apart.apply(step, recompute, len(fast), *fast, embeddings, *weights)  # type: ignore[no-untyped-call]
    return moved, loss, lead


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, step: Step, recompute: bool, count: int, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.step, ctx.count = step, count
        ctx.random = torch.get_rng_state(), *get_device_states(*inputs)
        ctx.save_for_backward(*inputs)
        leaves, (moved, loss, lead) = _run(step, inputs[: count + 1], not recompute)
        ctx.kept = None if recompute else (leaves, (moved, loss, lead))
        ctx.mark_non_differentiable(lead)
        return (*(tensor.detach() for tensor in moved), loss.detach(), lead)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        inputs = ctx.saved_tensors
        leaves, (moved, loss, _) = ctx.kept or _anew(ctx, inputs)
        needed = ctx.needs_input_grad[3:]
        places = [*leaves, *inputs[len(leaves) :]]
        wanted = [tensor for tensor, need in zip(places, needed, strict=True) if need]
        found = iter(torch.autograd.grad([*moved, loss], wanted, outer[:-1], allow_unused=True))
        return None, None, None, *(next(found) if need else None for need in needed)


def _anew(ctx: Any, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Stepped]:
    """The step once more, with the random numbers it had."""
    state, devices, states = ctx.random
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(state)
        set_device_states(devices, states)
        return _run(ctx.step, inputs[: ctx.count + 1], True)


def _run(step: Step, inputs: Sequence[Tensor], keep: bool) -> tuple[list[Tensor], Stepped]:
    """Copies of the inputs that gradients stop at, and what the step makes of them."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        *fast, embeddings = leaves
        return leaves, step(fast, embeddings, keep)
