"""Low-rank corrections that are trained in place of a backbone's own weights (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from memwrite.backbones.projection_hooks import linear_layers
from memwrite.config import BackboneConfig
from memwrite.utils.rng import seeded


class LowRank(nn.Module):
    """W + α/r·BA in place of W; exactly W at first, as B is zero (section 4.1).

    Args:
        weight: W, (out, in).
        rank: r, at least 1.
        alpha: α.
        transposed: whether W is (in, out), as in GPT-2.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, transposed: bool) -> None:
        super().__init__()
        out, into = reversed(weight.shape) if transposed else weight.shape
        new = torch.empty(
            0, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device
        )
        self.A = nn.Parameter(new.new_empty(rank, into))
        self.B = nn.Parameter(new.new_zeros(out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self._scale, self._transposed = alpha / rank, transposed

    def forward(self, weight: Tensor) -> Tensor:
        """W with its correction, in the dtype of W."""
        change = self._scale * (self.B @ self.A)
        return (weight + (change.T if self._transposed else change)).to(weight.dtype)


def attach(model: nn.Module, config: BackboneConfig, seed: int) -> None:
    """Correct every linear layer of the model's blocks; the factors depend on `seed` alone.

    Names of modules, hooks and second derivatives stay as they are.
    """
    with seeded(seed):
        for layer in linear_layers(model):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            transposed = not isinstance(layer, nn.Linear)
            change = LowRank(weight, config.lora_rank, config.lora_alpha, transposed)
            parametrize.register_parametrization(layer, "weight", change)


def merge(model: nn.Module) -> None:
    """Make the corrections part of the weights, and the model an ordinary one."""
    for layer in linear_layers(model):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
