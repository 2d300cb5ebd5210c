"""Compression tokens: where they stand behind the segments of a batch, and the LoRA that acts on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from memwrite.modules.low_rank import LowRank, kaiming
from memwrite.protocols import Backbone, LayerAdapter, ProjectionDeltas
from memwrite.state import PackedTokens
from memwrite_compress.config import CompressionConfig


def behind(embeddings: Tensor, lengths: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Put tokens right behind the last real embedding of each row, and padding behind them.

    Args:
        embeddings: (B, T, D), real ones first in their rows.
        lengths: (B,), how many are real.
        tokens: (m, D).

    Returns:
        (B, T + m, D), and the places (B, m) of the tokens in it.
    """
    rows, length, width = embeddings.shape
    count = len(tokens)
    ends = lengths[:, None]
    place = torch.arange(length + count, device=embeddings.device).expand(rows, -1)
    source = torch.where(place < ends, place, place + length - ends).clamp(max=length + count - 1)
    joined = torch.cat([embeddings, tokens.to(embeddings.dtype).expand(rows, -1, -1)], 1)
    placed = joined.gather(1, source[..., None].expand(-1, -1, width))
    return placed, ends + torch.arange(count, device=embeddings.device)


def gathered(hidden: Tensor, at: Tensor) -> Tensor:
    """Return hidden (B, T, D) at places (B, m): (B, m, D)."""
    return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))


def segments(context: PackedTokens, width: int | None) -> Iterator[PackedTokens]:
    """Cut a context into segments of `width` tokens; None leaves it whole."""
    width = width or max(context.ids.shape[1], 1)
    for start in range(0, context.ids.shape[1], width):
        yield context.columns(start, start + width)


class LayerLora(nn.Module):
    """The LoRA of one layer: A, drawn at random, and B, which is 0 at the start, for each projection."""

    def __init__(self, config: CompressionConfig, backbone: Backbone, layer: int) -> None:
        super().__init__()
        self._scale = config.alpha / config.rank
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        dtype = backbone.info.state_dtype
        for name in config.projections:
            outputs, inputs = backbone.projection(layer, name).shape
            self.A[name] = nn.Parameter(kaiming(config.rank, inputs, dtype))
            self.B[name] = nn.Parameter(torch.zeros(outputs, config.rank, dtype=dtype))

    def adapter(self, at: Tensor | None) -> LayerAdapter:
        """Return what changes the layer at the places `at` (B, m); None for every place."""
        return _AtTokens(
            {n: LowRank(self.A[n], self.B[n], self._scale) for n in self.A.keys()},  # noqa: SIM118
            at,
        )


def lora_of(config: CompressionConfig, backbone: Backbone) -> nn.ModuleList:
    """Make the LoRA of every layer; none where the rank is 0.

    Raises:
        ConfigError: the model has no such projection.
    """
    layers = range(backbone.info.layers if config.rank else 0)
    return nn.ModuleList(LayerLora(config, backbone, layer) for layer in layers)


def adapters(lora: nn.ModuleList, at: Tensor | None) -> dict[int, LayerAdapter]:
    """Return the adapters of all layers, each as `LayerLora.adapter`."""
    return {n: cast(LayerLora, layer).adapter(at) for n, layer in enumerate(lora)}


@dataclass(frozen=True)
class _AtTokens:
    """One layer's LoRA at some places of each row; a `LayerAdapter`."""

    maps: Mapping[str, LowRank]
    at: Tensor | None

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {name: partial(_delta, low_rank, self.at) for name, low_rank in self.maps.items()}

    def rows(self, index: Tensor) -> _AtTokens:
        """Return the adapter of these rows."""
        return replace(self, at=None if self.at is None else self.at[index.to(self.at.device)])


def _delta(low_rank: LowRank, at: Tensor | None, inputs: Tensor) -> Tensor:
    if at is None:
        return low_rank(inputs)
    change = low_rank(gathered(inputs, at))
    index = at[..., None].expand_as(change)
    return change.new_zeros(*inputs.shape[:2], change.shape[-1]).scatter(1, index, change)
