"""One step of the inner loop, and backtracking around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from memwrite.state import PackedTokens
from memwrite_gradient.config import GradientConfig
from memwrite_gradient.inner_optimizer import Adam, clip, midpoint, non_finite_rows
from memwrite_gradient.recompute import StepOutput

# In nats, the margin of a token over the best other one. "Exact" keeps a distance that the rounding of another batch
# size, kernel or machine cannot undo; a token is confident when the next steps will hardly undo it.
EXACT, CONFIDENT = 0.1, 0.3
#: Of one step, until it leads to finite numbers.
MAX_HALVINGS = 20


class Objective(Protocol):
    """What is descended: a writer, as its steps see it."""

    @property
    def config(self) -> GradientConfig: ...

    def reconstruct(
        self, params: Sequence[Tensor], embeddings: Tensor, context: PackedTokens
    ) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood and the margin of every token, (B, T) each."""
        ...

    def step_sizes(self, count: int) -> Sequence[Tensor | float]:
        """Return the full step size of each of `count` parameters."""
        ...


@dataclass(frozen=True)
class InnerStep:
    """One gradient step on the reconstruction loss L, each row's mean over its own tokens.

    Attributes:
        objective: what is descended.
        context: the tokens to reconstruct.
        active: (B,) bool, rows that still move.
        lr_factor: multiplier of the full step size.
        optimizer: one for each parameter, or None for plain gradients.
        keep_loss: whether L can be differentiated although the step cannot.
    """

    objective: Objective
    context: PackedTokens
    active: Tensor
    lr_factor: float
    optimizer: Sequence[Adam] | None
    keep_loss: bool

    def run(self, params: list[Tensor], embeddings: Tensor, create_graph: bool) -> StepOutput:
        """Go one step from `params`, which require gradients.

        Args:
            params: slots and, per example, their projection: (B, ...) each.
            embeddings: of the context, (B, T, D).
            create_graph: whether the step itself can be differentiated.

        Returns:
            The new params, L of each row (B,), and each token's margin (B, T).
        """
        config, mask = self.objective.config, self.context.mask
        nll, margin = self.objective.reconstruct(params, embeddings, self.context)
        count = self.context.lengths.clamp(min=1)
        loss = (nll * mask).sum(1) / count
        weight = torch.where(margin > CONFIDENT, config.settled_weight, 1.0) * mask
        descended = ((nll * weight).sum(1) / count).sum()
        keep_loss = create_graph or self.keep_loss
        gradients = torch.autograd.grad(
            descended, params, create_graph=create_graph, retain_graph=keep_loss
        )
        moving = self.active & inexact_rows(config, margin, self.context)
        sizes = self.objective.step_sizes(len(params))
        moved = []
        for index, (start, gradient) in enumerate(zip(params, gradients, strict=True)):
            move = clip(gradient, config.clip_value, config.clip_norm)
            if self.optimizer is not None:
                move = self.optimizer[index](move)
            rows = moving.view(-1, *[1] * (start.ndim - 1))
            moved.append(torch.where(rows, start - self.lr_factor * sizes[index] * move, start))
        return moved, loss if keep_loss else loss.detach(), margin


def backtrack(
    step: InnerStep,
    previous: Sequence[Tensor],
    params: list[Tensor],
    embeddings: Tensor,
    output: StepOutput,
) -> tuple[list[Tensor], StepOutput]:
    """Halve the way from `previous` to `params` in rows that `step` leads to numbers that are not finite.

    Args:
        step: to run again.
        previous: where the step before began.
        params: where this one began.
        embeddings: of the context.
        output: what `step` made of `params`.

    Returns:
        Where the step began in the end, and its output; that is still not finite where the halvings did not help.
    """
    for _ in range(MAX_HALVINGS):
        wrong = non_finite_rows(output[1], output[0])
        if not wrong.any():
            break
        params = midpoint(previous, params, wrong)
        output = step.run(params, embeddings, False)
    return params, output


def inexact_rows(config: GradientConfig, margin: Tensor, context: PackedTokens) -> Tensor:
    """Return (B,) bool: whether a row, with these margins of its tokens, is still to be descended."""
    if not config.stop_when_exact:
        return torch.ones_like(context.lengths, dtype=torch.bool)
    return ((margin <= EXACT) & context.mask).any(1)
