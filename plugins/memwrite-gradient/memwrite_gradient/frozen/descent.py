"""The steps of a descent, row by row, of which those are undone that make a memory worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memwrite.errors import DivergenceError
from memwrite.state import MemoryState, StateSpec
from memwrite_gradient.frozen.config import DescentConfig
from memwrite_gradient.frozen.forms import Form
from memwrite_gradient.inner_optimizer import Adam, half_cosine, non_finite_rows

#: In nats per token: a memory that is so close is not moved, since Adam makes full steps of rounding errors. As a share of
#: what the context is worth: a memory that is closer by so little is no better.
SETTLED = 1e-5
#: How often a memory is examined in the course of a descent, at equal distances.
CHECKS = 4


@dataclass(frozen=True)
class Descended:
    """What became of a memory.

    Attributes:
        memory: after the step that was best; after the last where that is not asked.
        step: (B,), that step; 0 for the start.
        losses: (steps, B), before each step, in nats per token.
        start: (K, B), the shares lost before all steps.
        end: (K, B), those of `memory`.
    """

    memory: MemoryState
    step: Tensor
    losses: Tensor
    start: Tensor
    end: Tensor


def descend(
    memory: MemoryState,
    form: Form,
    config: DescentConfig,
    loss_of: Callable[[MemoryState, int], Tensor],
    lost: Callable[[MemoryState], Tensor],
    ticks: Iterator[int],
    rows: Tensor,
) -> Descended:
    """Descend a memory, and keep for each row the best that was found.

    Args:
        memory: where it starts.
        form: says what moves.
        config: steps, their size, and the objective; a reconstruction is not judged by what is lost for distillation.
        loss_of: (memory, step) -> (B,), what is made small.
        lost: memory -> (K, B), the shares of what the context is worth that are lost, on K sets of texts; their mean counts.
        ticks: moves on by one for each step.
        rows: (B,), their numbers in the batch, for errors.

    Raises:
        DivergenceError: loss or memory are not finite.
    """
    spec = memory.spec
    # Small steps would be lost in half precision.
    memory = _cast(memory, replace(spec, dtype=torch.promote_types(spec.dtype, torch.float32)))
    movable = form.movable(memory)
    size = {name: share * _size(memory[name], movable) for name, share in form.moved.items()}
    adam = {name: Adam() for name in form.moved}
    losses: list[Tensor] = []
    with torch.no_grad():
        start = lost(memory)
    best, end, kept = memory, start, torch.zeros_like(start[0], dtype=torch.int64)
    for step in range(config.steps):
        with torch.enable_grad():
            moved = {name: memory[name].detach().requires_grad_() for name in form.moved}
            loss = loss_of(_with(memory, moved), step)
            gradients = torch.autograd.grad(loss.sum(), list(moved.values()))
        moving = movable & (loss > SETTLED).view(-1, *[1] * (movable.ndim - 1))
        rate = config.lr * (half_cosine(step, config.steps) if config.decay else 1.0)
        for name, gradient in zip(moved, gradients, strict=True):
            was = moved[name].detach()
            change = size[name] * adam[name](gradient) if config.optimizer == "adam" else gradient
            moved[name] = torch.where(moving, was - rate * change, was)
        if (wrong := non_finite_rows(loss, [*moved.values()])).any():
            at = rows[wrong].tolist()
            raise DivergenceError(
                f"the write diverged at step {step + 1} of {config.steps} in row(s) {at}: use a smaller "
                f"writer.params.lr",
                at,
            )
        memory = _with(memory, moved)
        losses.append(loss.detach())
        if (step + 1) * CHECKS // config.steps > step * CHECKS // config.steps:
            with torch.no_grad():
                found = lost(memory)
            better = found.mean(0) < end.mean(0) - SETTLED
            if config.objective == "reconstruction":
                better = torch.ones_like(better)
            best, end = memory.where(better, best), found.where(better, end)
            kept = torch.where(better, step + 1, kept)
        next(ticks)
    history = torch.stack(losses) if losses else start.new_zeros(0, start.shape[1])
    return Descended(_cast(best, spec), kept, history, start, end)


def _cast(memory: MemoryState, spec: StateSpec) -> MemoryState:
    return MemoryState(spec, {n: t.to(spec.dtype_of(n)) for n, t in memory.tensors.items()})


def _with(memory: MemoryState, moved: dict[str, Tensor]) -> MemoryState:
    return replace(memory, tensors={**memory.tensors, **moved})


def _size(tensor: Tensor, movable: Tensor) -> Tensor:
    """Return the root mean square of what moves of the last two axes: of a head's keys or values, or of all vectors.

    Values of SmolLM2 are forty times larger in its last layers than in its first.
    """
    square = torch.where(movable, tensor.square(), 0.0)
    count = movable.expand_as(tensor).sum((-2, -1), keepdim=True).clamp(min=1)
    return (square.sum((-2, -1), keepdim=True) / count).sqrt()
