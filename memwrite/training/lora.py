"""Low-rank corrections that are trained in place of a backbone's own weights (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from memwrite.backbones.adapters import Adapter
from memwrite.backbones.decoder_layers import linear_layers
from memwrite.config import BackboneConfig
from memwrite.modules.low_rank import LowRank, kaiming
from memwrite.utils.rng import seeded


class CorrectedWeight(nn.Module):
    """Computes W + α/r·BA in place of W; at first exactly W, because B is zero (section 4.1).

    Args:
        weight: W, (out, in).
        rank: r, at least 1.
        alpha: α.
        transposed: whether W is (in, out), as in GPT-2.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, transposed: bool) -> None:
        super().__init__()
        out, into = reversed(weight.shape) if transposed else weight.shape
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.A = nn.Parameter(kaiming(rank, into, dtype, weight.device))
        self.B = nn.Parameter(torch.zeros(out, rank, dtype=dtype, device=weight.device))
        self._scale, self._transposed = alpha / rank, transposed
        self.in_force = True

    def forward(self, weight: Tensor) -> Tensor:
        """Return W with its correction, where it is in force, in the dtype of W."""
        if not self.in_force:
            return weight
        change = LowRank(self.A, self.B, self._scale).weight()
        return (weight + (change.T if self._transposed else change)).to(weight.dtype)


def attach(model: nn.Module, config: BackboneConfig, seed: int) -> None:
    """Correct every linear layer of the model's blocks; the factors depend on `seed` alone.

    Names of modules, hooks and second derivatives stay as they are.
    """
    with seeded(seed):
        for layer in linear_layers(model):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            transposed = not isinstance(layer, nn.Linear)
            change = CorrectedWeight(weight, config.lora_rank, config.lora_alpha, transposed)
            parametrize.register_parametrization(layer, "weight", change)


@torch.no_grad()
def put(model: nn.Module, adapter: Adapter) -> None:
    """Let the corrections of a model that `attach` made begin as those of an adapter of the same rank."""
    for name, correction in adapter.corrections.items():
        held = _correction(model.get_submodule(name))
        held.A.copy_(correction.A)
        held.B.copy_(correction.B)


@contextmanager
def uncorrected(model: nn.Module) -> Iterator[None]:
    """Take every correction out of force within this."""
    corrections = [module for module in model.modules() if isinstance(module, CorrectedWeight)]
    for correction in corrections:
        correction.in_force = False
    try:
        yield
    finally:
        for correction in corrections:
            correction.in_force = True


def taken(model: nn.Module, config: BackboneConfig, dtype: torch.dtype) -> Adapter:
    """Take the corrections out of a model, whose weights are then what they were before.

    Args:
        model: corrected by `attach`.
        config: by which it was corrected.
        dtype: to round the corrections to.
    """
    corrections, transposed = {}, False
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            correction = _correction(module)
            down, up = (f.detach().to(dtype) for f in (correction.A, correction.B))
            transposed |= not isinstance(module, nn.Linear)
            corrections[name] = LowRank(down, up, config.lora_alpha / config.lora_rank)
    for name in corrections:
        layer = model.get_submodule(name)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return Adapter(corrections, config.lora_alpha, str(config.path), transposed)


def merge(model: nn.Module) -> None:
    """Make the corrections part of the weights, and the model an ordinary one."""
    for layer in linear_layers(model):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _correction(layer: nn.Module) -> CorrectedWeight:
    return cast(CorrectedWeight, cast(Any, layer).parametrizations.weight[0])
