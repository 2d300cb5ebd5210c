"""Compression tokens: where they stand behind the segments of a batch, and the LoRA that acts on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from memwrite.modules.low_rank import LowRank, kaiming
from memwrite.protocols import Backbone, LayerAdapter, ProjectionDeltas
from memwrite.state import PackedTokens
from memwrite.utils.padding import real_first
from memwrite_compress.config import CompressionConfig


def behind(parts: Sequence[tuple[Tensor, Tensor]], tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put the real embeddings of several parts and then the tokens next to each other, in every row.

    Args:
        parts: (B, n, D) with (B, n) bool, which are real; in order.
        tokens: (m, D), the same behind every row.

    Returns:
        (B, N, D), in which padding comes last, the number (B,) of real ones, and the places (B, m) of the tokens.
    """
    first = parts[0][0]
    rows, count = len(first), len(tokens)
    joined = [
        *(part.to(first.dtype) for part, _ in parts),
        tokens.to(first.dtype).expand(rows, -1, -1),
    ]
    masks = [
        *(mask for _, mask in parts),
        torch.ones(rows, count, dtype=torch.bool, device=first.device),
    ]
    mask = torch.cat(masks, 1)
    lengths = mask.sum(1)
    at = lengths[:, None] - count + torch.arange(count, device=first.device)
    return gathered(torch.cat(joined, 1), real_first(mask)), lengths, at


def last_hidden(
    backbone: Backbone, lora: nn.ModuleList, tokens: Tensor, parts: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Return the last hidden states (B, m, D) of the tokens behind several parts, as `behind` takes them."""
    inputs, lengths, at = behind(parts, tokens)
    run = backbone.forward(
        inputs.to(backbone.info.dtype), corrections=adapters(lora, None), lengths=lengths
    )
    return gathered(run.hidden, at)


def gathered(hidden: Tensor, at: Tensor) -> Tensor:
    """Return hidden (B, T, D) at places (B, m): (B, m, D)."""
    return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))


def slots_of(tensor: Tensor, at: Tensor) -> Tensor:
    """Return keys or values (B, L, Hkv, S, Dh) at slots (B, m): (B, L, Hkv, m, Dh)."""
    index = at[:, None, None, :, None].expand(*tensor.shape[:3], -1, tensor.shape[-1])
    return tensor.gather(3, index)


def segments(context: PackedTokens, width: int | None) -> Iterator[PackedTokens]:
    """Cut a context into segments of `width` tokens; None leaves it whole."""
    width = width or max(context.ids.shape[1], 1)
    for start in range(0, context.ids.shape[1], width):
        yield context.columns(start, start + width)


def even_segments(context: PackedTokens, width: int | None) -> Iterator[PackedTokens]:
    """Cut each row into as few segments of at most `width` tokens as there must be, as long as one another."""
    lengths = context.lengths
    width = width or max(context.ids.shape[1], 1)
    own = -(-lengths // (-(-lengths // width)).clamp(min=1))
    step = torch.arange(int(own.max()) if own.numel() else 0, device=lengths.device)
    for number in range(-(-context.ids.shape[1] // width)):
        place = number * own[:, None] + step
        mask = (step < own[:, None]) & (place < lengths[:, None])
        index = place.clamp(max=context.ids.shape[1] - 1)
        yield PackedTokens(context.ids.gather(1, index).masked_fill(~mask, 0), mask)


def newest(mask: Tensor, room: int | None) -> tuple[Tensor, Tensor]:
    """Say which slots remain where there is room for some: the last real ones, side by side from the first place on.

    Args:
        mask: (B, S), which slots are real, the oldest first.
        room: the number of slots that a state has; None for as many as the fullest row needs.

    Returns:
        (B, room) the old place of each slot, and (B, room) bool which are real.
    """
    count = mask.sum(1)
    order = real_first(mask)
    room = order.shape[1] if room is None else room
    place = torch.arange(room, device=mask.device) + (count - room).clamp(min=0)[:, None]
    kept = torch.arange(room, device=mask.device) < count[:, None]
    if not order.shape[1]:
        return place.new_zeros(len(mask), room), kept
    return order.gather(1, place.clamp(max=order.shape[1] - 1)), kept


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
