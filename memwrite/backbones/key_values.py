"""What a model has read: out of `KeyValues` into a cache of transformers, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.backbones.decoder_layers import DecoderLayer
from memwrite.protocols import BackboneInfo, KeyValues
from memwrite.state import TensorSpec


def fill(
    cache: Any,
    past: KeyValues,
    layers: Sequence[DecoderLayer],
    info: BackboneInfo,
    recurrent: Mapping[int, Mapping[str, TensorSpec]],
) -> None:
    """Put what is past into a new cache.

    Args:
        cache: of the model.
        past: what it has read.
        layers: of the model.
        info: of the model.
        recurrent: what its recurrent layers hold, as `Backbone.recurrent`, if `past` has states of theirs.
    """
    for number, held in (past.recurrent or {}).items():
        states = {name: tensor.to(recurrent[number][name].dtype) for name, tensor in held.items()}
        _set_recurrent_states(cache.layers[number], states)
    # A layer without slots would not be repeated for beams.
    if past.mask.shape[1] and info.layers:
        cache.bias, cache.rule = past.bias, past.rule
        cache.bias_groups = info.heads // info.kv_heads
        keys, values = (t.to(info.dtype) for t in (past.keys, past.values))
        numbers = [layer.number for layer in layers if layer.attention is not None]
        # The gradient of `unbind` is one stack; that of an index for each layer is zeros of the size of all layers.
        for number, *own in zip(numbers, keys.unbind(1), values.unbind(1), strict=True):
            cache.update(*own, number)


def kept(
    cache: Any,
    past: KeyValues | None,
    new: Tensor,
    layers: Sequence[DecoderLayer],
    dtype: torch.dtype,
) -> KeyValues:
    """Return what a cache holds after a run.

    Args:
        cache: after the run.
        past: what it was filled with before.
        new: (B, T), which of the embeddings that were run are real.
        layers: of the model.
        dtype: of the model.
    """
    attending = [cache.layers[e.number] for e in layers if e.attention is not None]
    seen = new if past is None else torch.cat([past.mask, new], 1)
    if attending:
        keys, values = (
            torch.stack([getattr(layer, name) for layer in attending], 1)
            for name in ("keys", "values")
        )
    else:
        keys = values = new.new_zeros(len(new), 0, 0, 0, 0, dtype=dtype)
        seen = seen[:, :0]
    count = new.sum(1)
    states = {e.number: _recurrent_states(cache.layers[e.number]) for e in layers if e.recurrent}
    return KeyValues(
        keys,
        values,
        seen,
        count if past is None else past.next_position + count,
        None if past is None or past.bias is None else F.pad(past.bias, (0, new.shape[1])),
        states or None,
        None if past is None else past.rule,
    )


def recurrent_specs(kept: KeyValues) -> dict[int, dict[str, TensorSpec]]:
    """Return what each recurrent layer holds, as `Backbone.recurrent`."""
    return {
        layer: {n: TensorSpec(tuple(t.shape[1:]), t.dtype) for n, t in states.items()}
        for layer, states in (kept.recurrent or {}).items()
    }


def _recurrent_states(layer: Any) -> dict[str, Tensor]:
    """Return what one cache layer's recurrent part holds: "conv" and "recurrent", those that there are."""
    held = {"conv": layer.conv_states[0], "recurrent": layer.recurrent_states[0]}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def _set_recurrent_states(layer: Any, states: Mapping[str, Tensor]) -> None:
    """Put copies of `states`, as `_recurrent_states` returns them, into a new cache layer."""
    conv, recurrent = states["conv"].clone(), states.get("recurrent")
    layer.conv_states[0], layer.conv_kernel_size[0] = conv, conv.shape[-1]
    layer.dtype, layer.device = conv.dtype, conv.device
    layer.is_conv_states_initialized[0] = layer.has_previous_state[0] = True
    if recurrent is not None:
        layer.recurrent_states[0] = recurrent.clone()
        layer.is_recurrent_states_initialized[0] = True
