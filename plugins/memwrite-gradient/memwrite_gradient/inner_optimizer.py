"""What turns a gradient into a step: clipping, Adam as a differentiable function, and checks for finite numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def clip(gradient: Tensor, value: float | None, norm: float | None) -> Tensor:
    """Clip elements to [-value, value], then scale each example (B, ...) with a larger norm down to `norm`."""
    if value is not None:
        gradient = gradient.clamp(-value, value)
    if norm is not None:
        size = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.ndim - 1))
        gradient = torch.where(size > norm, gradient * (norm / (size + 1e-6)), gradient)
    return gradient


def non_finite_rows(loss: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Return (B,) bool: rows in which the loss (B,) or a param (B, ...) is not finite."""
    wrong = ~loss.detach().isfinite()
    for tensor in params:
        wrong = wrong | ~tensor.detach().isfinite().flatten(1).all(1)
    return wrong


def midpoint(start: Sequence[Tensor], end: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """Return `end`, but in `rows` (B,) the midpoint of `start` and `end`, as leaves to take a gradient for."""
    moved = []
    for first, last in zip(start, end, strict=True):
        chosen = rows.view(-1, *[1] * (first.ndim - 1))
        moved.append(torch.where(chosen, (first + last) / 2, last).detach().requires_grad_())
    return moved


def half_cosine(step: int, steps: int) -> float:
    """Return the learning-rate multiplier of a step, from 1 along a half cosine down to 0.05."""
    return 0.525 + 0.475 * math.cos(math.pi * step / steps)


class Adam:
    """Adam's direction (Kingma & Ba 2015, algorithm 1), out of place, so that it can be differentiated.

    Args:
        betas: decay of the mean and of the squared gradients.
        eps: inside the root, where the derivative of the root at zero stays finite.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-16) -> None:
        self._betas, self._eps = betas, eps
        self._steps = 0
        self._mean: Tensor | float = 0.0
        self._square: Tensor | float = 0.0

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the direction to step against; the caller multiplies by the step size."""
        first, second = self._betas
        self._steps += 1
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient.square()
        mean = self._mean / (1 - first**self._steps)
        square = self._square / (1 - second**self._steps)
        return mean / (square + self._eps).sqrt()
