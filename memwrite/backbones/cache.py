"""Caches of transformers that carry what a memory changes, and the states of recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from memwrite.backbones.decoder_layers import DecoderLayer
from memwrite.protocols import LayerAdapter


class _CarriesAdapters(Cache):  # type: ignore[misc]
    """A key-value cache that carries adapters and a bias along, reordering their rows with its own.

    Attributes:
        corrections: layer -> adapter.
        bias: (B, L, Hkv, M), added to the attention logits of the first M slots.
        bias_groups: query heads of each key head.
    """

    corrections: Mapping[int, LayerAdapter] | None = None
    bias: Tensor | None = None
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


class AdapterCache(_CarriesAdapters, DynamicCache):  # type: ignore[misc]
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


class AdapterStaticCache(_CarriesAdapters, StaticCache):  # type: ignore[misc]
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


def recurrent_states(layer: Any) -> dict[str, Tensor]:
    """Return what one cache layer's recurrent part holds: "conv" and "recurrent", those that there are."""
    held = {"conv": layer.conv_states[0], "recurrent": layer.recurrent_states[0]}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def set_recurrent_states(layer: Any, states: Mapping[str, Tensor]) -> None:
    """Put copies of `states`, as `recurrent_states` returns them, into a new cache layer."""
    conv, recurrent = states["conv"].clone(), states.get("recurrent")
    layer.conv_states[0], layer.conv_kernel_size[0] = conv, conv.shape[-1]
    layer.dtype, layer.device = conv.dtype, conv.device
    layer.is_conv_states_initialized[0] = layer.has_previous_state[0] = True
    if recurrent is not None:
        layer.recurrent_states[0] = recurrent.clone()
        layer.is_recurrent_states_initialized[0] = True


def _cache_layer(layer: DecoderLayer) -> Any:
    if layer.recurrent:
        return _Recurrent() if layer.attention is None else _RecurrentAndAttention()
    return DummyLayer() if layer.attention is None else DynamicLayer()


def _renew(states: dict[int, Tensor | None], index: int) -> None:
    held = states[index]
    states[index] = None if held is None else held.clone()
