"""Falcon's attention, put through the attention function that its config names, as every other family's is.

transformers lets Falcon compute attention by itself, so that nobody could choose, observe or bias it.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from memwrite.errors import ConfigError


def attach(model: Any, attention_modules: list[nn.Module]) -> None:
    """Replace the attention of every layer of a Falcon; leave other families alone.

    Raises:
        ConfigError: its attention is biased by distance (ALiBi), so that a memory has no place in it.
    """
    if model.config.model_type != "falcon":
        return
    if model.config.alibi:
        raise ConfigError(
            "a Falcon with alibi = true adds to its attention what depends on the number of slots before a token, which "
            "a memory changes: take one with rotary positions (alibi = false)"
        )
    for attention in attention_modules:
        attention.forward = partial(_attend, attention)


def _attend(
    attention: Any,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    layer_past: Any = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as `FalconAttention.forward` does without ALiBi."""
    family: Any = sys.modules[type(attention).__module__]
    assert alibi is None
    assert position_embeddings is not None
    fused = attention.query_key_value(hidden_states)
    query, key, value = (part.transpose(1, 2) for part in attention._split_heads(fused))
    query, key = family.apply_rotary_pos_emb(query, key, *position_embeddings)
    if layer_past is not None:
        key, value = layer_past.update(key, value, attention.layer_idx)
    attention.num_key_value_groups = query.shape[1] // key.shape[1]
    attend = AttentionInterface()[attention.config._attn_implementation]
    output, weights = attend(
        attention, query, key, value, attention_mask, scaling=attention.inv_norm_factor, dropout=0.0
    )
    return attention.dense(output.reshape(*hidden_states.shape[:2], -1)), weights
