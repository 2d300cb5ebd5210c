"""Tiny random models that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memwrite import Memory

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "type": "gpt2",
        "params": {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "initializer_range": 0.2,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        },
    },
    "llama": {
        "type": "llama",
        "params": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
        },
    },
}

Build = Callable[..., Memory]
