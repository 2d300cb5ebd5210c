"""Low-rank corrections that are trained in place of a backbone's own weights (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from memwrite.backbones.adapters import Adapter
from memwrite.backbones.decoder_layers import blocks, linear_layers
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError
from memwrite.modules.low_rank import LowRank, kaiming
from memwrite.utils.rng import seeded

_NAME = "lora"


class Correction(nn.Module):
    """Adds α/r·BAx to what a linear layer makes of x; at first nothing, because B is zero (section 4.1).

    The product BA is never made: that, and the gradient of it, would cost a training step as much as a third of the model.

    Args:
        layer: the linear layer.
        rank: r, at least 1.
        alpha: α.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.transposed = not isinstance(layer, nn.Linear)
        out, into = reversed(weight.shape) if self.transposed else weight.shape
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.A = nn.Parameter(kaiming(rank, into, dtype, weight.device))
        self.B = nn.Parameter(torch.zeros(out, rank, dtype=dtype, device=weight.device))
        self.scale = alpha / rank
        self.in_force = True

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what is added for inputs (..., in), computed in their dtype, as the layer itself computes: (..., out)."""
        down, up = self.A.to(inputs.dtype), self.B.to(inputs.dtype)
        return inputs @ down.mT @ (up.mT * self.scale)

    def weight(self) -> Tensor:
        """Return α/r·BA in the layout of the layer's weight."""
        change = LowRank(self.A, self.B, self.scale).weight()
        return change.T if self.transposed else change


def attach(model: nn.Module, config: BackboneConfig, seed: int) -> None:
    """Correct every linear layer of the model's blocks from `lora_from` on; the factors depend on `seed` alone.

    Each layer gets its `Correction` as a module of its own.

    Raises:
        ConfigError: the model has no such block.
    """
    chosen = linear_layers(model, config.lora_from)
    if not chosen:
        raise ConfigError(
            f"backbone.lora_from = {config.lora_from} leaves nothing to correct: the model has "
            f"{len(blocks(model))} layers, numbered from 0"
        )
    with seeded(seed):
        for layer in chosen:
            layer.add_module(_NAME, Correction(layer, config.lora_rank, config.lora_alpha))
            # Before a memory's own changes, which may be gates on the whole of what the layer makes.
            layer.register_forward_hook(_correct, prepend=True)


def _correct(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    correction: Correction = getattr(layer, _NAME)
    return output + correction.forward(args[0]) if correction.in_force else None


@torch.no_grad()
def put(model: nn.Module, adapter: Adapter) -> None:
    """Let the corrections of a model that `attach` made begin as those of an adapter of the same rank."""
    held = corrections(model)
    for name, correction in adapter.corrections.items():
        held[name].A.copy_(correction.A)
        held[name].B.copy_(correction.B)


@contextmanager
def uncorrected(model: nn.Module) -> Iterator[None]:
    """Take every correction out of force within this."""
    held = corrections(model).values()
    for correction in held:
        correction.in_force = False
    try:
        yield
    finally:
        for correction in held:
            correction.in_force = True


def corrections(model: nn.Module) -> dict[str, Correction]:
    """Return the corrections of a model that `attach` made, by the names of the layers."""
    suffix = f".{_NAME}"
    return {
        name.removesuffix(suffix): module
        for name, module in model.named_modules()
        if isinstance(module, Correction)
    }


def taken(model: nn.Module, config: BackboneConfig, dtype: torch.dtype) -> Adapter:
    """Take the corrections out of a model, which is then what it was before.

    Args:
        model: corrected by `attach`.
        config: by which it was corrected.
        dtype: to round the corrections to.
    """
    held = corrections(model)
    factors = {
        name: LowRank(c.A.detach().to(dtype), c.B.detach().to(dtype), c.scale)
        for name, c in held.items()
    }
    _detach(model)
    transposed = any(correction.transposed for correction in held.values())
    return Adapter(factors, config.lora_alpha, str(config.path), transposed)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Make the corrections part of the weights, and the model an ordinary one."""
    for name, correction in corrections(model).items():
        weight: Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
        weight.copy_(weight + correction.weight())
    _detach(model)


def _detach(model: nn.Module) -> None:
    for name in corrections(model):
        layer = model.get_submodule(name)
        delattr(layer, _NAME)
        hooks = layer._forward_hooks
        for key in [key for key, hook in hooks.items() if hook is _correct]:
            del hooks[key]
