"""Low-rank matrices B A, the form in which weights are corrected (LoRA, arXiv 2106.09685, equation 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LowRank:
    """The matrix scale · B A of rank r.

    Attributes:
        A: (r, in), or (B, r, in) where each row of a batch has its own.
        B: (out, r), or (B, out, r).
        scale: α / r.
    """

    A: Tensor
    B: Tensor
    scale: float

    def __call__(self, inputs: Tensor) -> Tensor:
        """Multiply inputs (B, T, in) by the matrix, without making it: (B, T, out)."""
        dtype = torch.promote_types(inputs.dtype, self.A.dtype)
        return inputs.to(dtype) @ self.A.to(dtype).mT @ self.B.to(dtype).mT * self.scale

    def weight(self) -> Tensor:
        """Return the whole matrix (out, in)."""
        return self.scale * (self.B @ self.A)


def kaiming(
    outputs: int, inputs: int, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """Draw a weight (outputs, inputs) as `nn.Linear` does: uniformly, by He et al. 2015 with a = √5."""
    weight = torch.empty(outputs, inputs, dtype=dtype, device=device)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return weight


def stacked_factors(
    layers: int, outputs: int, inputs: int, rank: int, dtype: torch.dtype
) -> tuple[nn.Parameter, nn.Parameter]:
    """Make A (layers, rank, inputs), drawn by `kaiming`, and B (layers, outputs, rank) of zeros: no change at first."""
    down = torch.stack([kaiming(rank, inputs, dtype) for _ in range(layers)])
    return nn.Parameter(down), nn.Parameter(torch.zeros(layers, outputs, rank, dtype=dtype))
