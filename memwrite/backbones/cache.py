"""Caches of transformers that carry what a memory changes, and keep the graph of recurrent states."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import (
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from memwrite.backbones.decoder_layers import DecoderLayer
from memwrite.errors import InputError
from memwrite.protocols import LayerAdapter, SlotRule

#: What models call their argument for a cache: all since transformers 5.24; most, Mamba and Falcon's layers before.
_ARGUMENTS = ("cache", "past_key_values", "cache_params", "layer_past")


def cache_argument(names: Container[str]) -> str:
    """Return which of the names of arguments is that of the cache."""
    return next((name for name in _ARGUMENTS if name in names), "past_key_values")


class CarriesAdapters(Cache):  # type: ignore[misc]
    """A key-value cache that carries adapters and a bias along, reordering their rows with its own.

    Attributes:
        corrections: layer -> adapter.
        bias: (B, L, Hkv, M), added to the attention logits of the first M slots.
        rule: gives what is added besides, to each query's own.
        bias_groups: query heads of each key head.
    """

    corrections: Mapping[int, LayerAdapter] | None = None
    bias: Tensor | None = None
    rule: SlotRule | None = None
    bias_groups: int = 1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._reorder(indices)

    def _reorder(self, index: Tensor) -> None:
        if self.corrections:
            self.corrections = {layer: c.rows(index) for layer, c in self.corrections.items()}
        if self.bias is not None:
            self.bias = self.bias[index.to(self.bias.device)]
        if self.rule is not None:
            self.rule = self.rule.map(lambda tensor: tensor[index.to(tensor.device)])


class AdapterCache(CarriesAdapters, DynamicCache):  # type: ignore[misc]
    """A cache that grows with the text.

    Args:
        layers: of a model with recurrent layers; by default there is a layer of keys and values for each that asks.
    """

    def __init__(self, layers: Sequence[DecoderLayer] = ()) -> None:
        # Not of the model's config: layers with a window would drop the keys that are beyond it.
        super().__init__()
        if any(layer.recurrent for layer in layers):
            self.layers = [_cache_layer(layer) for layer in layers]
            self.layer_class_to_replicate = None


class AdapterStaticCache(CarriesAdapters, StaticCache):  # type: ignore[misc]
    """A cache whose size is fixed when it is made."""


class _KeepsGraph:
    """Updates a layer's states in new tensors: those of the last update may be part of a graph, or of a memory."""

    conv_states: dict[int, Tensor | None]
    recurrent_states: dict[int, Tensor | None]

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Any:
        _renew(self.conv_states, state_idx)
        update = super().update_conv_state  # type: ignore[misc]
        return update(conv_states, state_idx, **kwargs)

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any
    ) -> Any:
        _renew(self.recurrent_states, state_idx)
        update = super().update_recurrent_state  # type: ignore[misc]
        return update(recurrent_states, state_idx, **kwargs)


class _Recurrent(_KeepsGraph, LinearAttentionLayer):  # type: ignore[misc]
    pass


class _RecurrentAndAttention(_KeepsGraph, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    pass


def new_cache(
    kind: str | None, layers: Sequence[DecoderLayer], config: Any, size: int
) -> AdapterCache | AdapterStaticCache:
    """Return an empty cache for one call of `generate`.

    Args:
        kind: "dynamic", which None stands for, or "static".
        layers: of the model.
        config: of the transformers model.
        size: number of slots of a static one.

    Raises:
        InputError: there is no such kind, or not for this model.
    """
    if kind == "static" and any(layer.recurrent for layer in layers):
        raise InputError(
            "cache_implementation 'static' is not for models with recurrent layers: leave it out"
        )
    if kind == "static":
        return AdapterStaticCache(config, max_cache_len=size)
    if kind not in (None, "dynamic"):
        raise InputError(f"cache_implementation must be 'dynamic' or 'static', got '{kind}'")
    return AdapterCache(layers)


def plain_cache(layers: Sequence[DecoderLayer], config: Any) -> DynamicCache:
    """Return an empty cache as transformers itself makes it, but for windows: they would drop keys that are beyond."""
    recurrent = any(layer.recurrent for layer in layers)
    return DynamicCache(config=config) if recurrent else DynamicCache()


def _cache_layer(layer: DecoderLayer) -> Any:
    if layer.recurrent:
        return _Recurrent() if layer.attention is None else _RecurrentAndAttention()
    # What holds nothing is as good as empty for ever.
    return LinearAttentionLayer() if layer.attention is None else DynamicLayer()


def _renew(states: dict[int, Tensor | None], index: int) -> None:
    held = states[index]
    states[index] = None if held is None else held.clone()
