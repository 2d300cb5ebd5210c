"""Inner steps with a graph of their own: recomputed in the backward pass, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

#: A step's new params, each example's loss (B,) and each token's margin (B, T).
StepOutput = tuple[list[Tensor], Tensor, Tensor]
#: Makes it of params and the context's embeddings; the flag says whether it can be differentiated.
Step = Callable[[list[Tensor], Tensor, bool], StepOutput]


def isolated_step(
    step: Step, params: list[Tensor], embeddings: Tensor, weights: Sequence[Tensor], recompute: bool
) -> StepOutput:
    """Return `step(params, embeddings, True)`, with a graph that begins at its arguments, as the compiler needs it.

    Args:
        step: pure, but for the weights that it uses and the random numbers that it draws.
        params: (B, ...) each.
        embeddings: (B, T, D).
        weights: all leaves that `step` uses and that may need a gradient.
        recompute: keep no graph, and run the step once more in the backward pass.
    """
    *moved, loss, margin = _IsolatedStep.apply(  # type: ignore[no-untyped-call]
        step, recompute, len(params), *params, embeddings, *weights
    )
    return moved, loss, margin


class _IsolatedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, step: Step, recompute: bool, count: int, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.step, ctx.count = step, count
        ctx.random = torch.get_rng_state(), *get_device_states(*inputs)
        ctx.save_for_backward(*inputs)
        leaves, (moved, loss, margin) = _run(step, inputs[: count + 1], not recompute)
        ctx.kept = None if recompute else (leaves, (moved, loss, margin))
        ctx.mark_non_differentiable(margin)
        return (*(tensor.detach() for tensor in moved), loss.detach(), margin)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        inputs = ctx.saved_tensors
        leaves, (moved, loss, _) = ctx.kept or _rerun(ctx, inputs)
        needed = ctx.needs_input_grad[3:]
        places = [*leaves, *inputs[len(leaves) :]]
        sources = [tensor for tensor, need in zip(places, needed, strict=True) if need]
        gradients = iter(
            torch.autograd.grad([*moved, loss], sources, outer[:-1], allow_unused=True)
        )
        return None, None, None, *(next(gradients) if need else None for need in needed)


def _rerun(ctx: Any, inputs: Sequence[Tensor]) -> tuple[list[Tensor], StepOutput]:
    """Run the step once more, with the random numbers it had."""
    state, devices, states = ctx.random
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(state)
        set_device_states(devices, states)
        return _run(ctx.step, inputs[: ctx.count + 1], True)


def _run(
    step: Step, inputs: Sequence[Tensor], create_graph: bool
) -> tuple[list[Tensor], StepOutput]:
    """Return copies of the inputs that gradients stop at, and what the step makes of them."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        *params, embeddings = leaves
        return leaves, step(params, embeddings, create_graph)
