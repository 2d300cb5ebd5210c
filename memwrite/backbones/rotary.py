"""Rotary embeddings: how far a model's frequencies hold, and moving keys that carry them to other positions."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memwrite.backbones.decoder_layers import attention_layers, decoder_layers
from memwrite.errors import ConfigError

#: Frequencies of these change for all positions at once where a sequence grows beyond the original length.
_LENGTH_DEPENDENT = ("dynamic", "longrope")
#: Positions of a model that has none, since all its layers are recurrent.
NO_LIMIT = 1 << 20


def positions(config: Any) -> int:
    """Return the longest sequence whose positions do not depend on its length.

    Beyond it a memory that was prefilled would be read with other frequencies than it was written with, and a row would
    depend on the row beside it.

    Raises:
        ConfigError: the model names none.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None and not hasattr(config, "num_attention_heads"):
        return NO_LIMIT
    if longest is None:
        raise ConfigError(
            f"'{config.model_type}' does not say how many positions it has; models whose attention is biased by "
            f"distance (ALiBi) are not supported: take one with rotary positions"
        )
    for parameters in _rope_parameters(config):
        if parameters.get("rope_type") in _LENGTH_DEPENDENT:
            original = parameters.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            longest = min(longest, original or longest)
    return int(longest)


def rotate(
    model: Any,
    keys: Tensor,
    by: Tensor,
    layers: Sequence[int] | None = None,
) -> Tensor:
    """Move keys (B, L, Hkv, M, Dh) by positions: the rotation by p + n is that by p and then by n.

    Keys of hybrid models that leave positions to their recurrent layers stay as they are.

    Args:
        model: a transformers causal language model.
        keys: or queries, of any number of heads.
        by: (B, M), or (B, L, Hkv, M) where heads differ.
        layers: attention layers whose keys they are, by number; by default all.

    Raises:
        ConfigError: the model's positions are not rotations.
    """
    rotary = getattr(model.base_model, "rotary_emb", None)
    attending = attention_layers(model)
    if rotary is None and any(layer.recurrent for layer in decoder_layers(model)):
        return keys
    family = sys.modules[type(attending[0][1]).__module__]
    if rotary is None or not hasattr(family, "apply_rotary_pos_emb"):
        raise ConfigError(
            f"the positions of '{model.config.model_type}' are not rotations of its keys, so keys cannot be moved"
        )
    wide = keys.to(torch.promote_types(keys.dtype, torch.float32))
    moved = []
    for at, index in enumerate(range(len(attending)) if layers is None else layers):
        layer, attention = attending[index]
        here = wide[:, at]
        if not getattr(attention, "use_rope", True):
            moved.append(here)
            continue
        steps = by
        if by.ndim == 4:  # all heads in a row, as if they were one
            here, steps = here.flatten(1, 2)[:, None], by[:, at].flatten(1)
        cos, sin = _rotation(rotary, here, steps, model.config, layer.number)
        width = cos.shape[-1]
        turned, _ = family.apply_rotary_pos_emb(here[..., :width], here[..., :width], cos, sin)
        moved.append(torch.cat([turned, here[..., width:]], -1).reshape(wide[:, at].shape))
    return torch.stack(moved, 1).to(keys.dtype)


def _rotation(
    rotary: Any, like: Tensor, by: Tensor, config: Any, layer: int
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (B, M, width) of the rotation by (B, M) positions, without the scale that keys have."""
    if "layer_type" in inspect.signature(type(rotary).forward).parameters:
        kind = config.layer_types[layer]
        cos, sin = rotary(like, by, kind)
        scale = getattr(rotary, f"{kind}_attention_scaling", 1.0)
    else:
        cos, sin = rotary(like, by)
        scale = getattr(rotary, "attention_scaling", 1.0)
    return cos / scale, sin / scale


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Return the parameters of each rotary embedding: of all layers, or of each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
