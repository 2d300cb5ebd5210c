"""What happens to a gradient before it is a step: clipping, and Adam as a differentiable function."""

from __future__ import annotations

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
        """The direction to step against; the step size is the caller's."""
        first, second = self._betas
        self._steps += 1
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient.square()
        mean = self._mean / (1 - first**self._steps)
        square = self._square / (1 - second**self._steps)
        return mean / (square + self._eps).sqrt()
