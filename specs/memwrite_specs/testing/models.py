"""Two tiny random models to try everything on."""

from __future__ import annotations

from typing import Any

#: Name -> type and parameters of the backbone part of a config.
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


def tolerance(family: str) -> dict[str, float]:
    """Return the `atol` and `rtol` that a float64 model of the family can be held to.

    All families that are supported, but GPT-2, have norms that compute in float32 whatever the model's dtype.
    """
    return {"atol": 1e-9, "rtol": 1e-9} if family == "gpt2" else {"atol": 1e-5, "rtol": 1e-5}
