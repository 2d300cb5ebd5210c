"""A tiny random model of every family that the core supports; their windows are short enough to matter."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from memwrite import Memory
from memwrite.backbones.projection_hooks import attention_modules
from memwrite_specs.testing.models import MODELS

#: The window of the families that have sliding attention.
WINDOW = 6
#: The layers of each model.
LAYERS = 3

_COMMON: dict[str, Any] = {**MODELS["llama"]["params"], "num_hidden_layers": LAYERS}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
# Wider heads than the model is divided into, and caps and scales that do something at this size.
_GEMMA: dict[str, Any] = {
    **_COMMON,
    "head_dim": 12,
    "query_pre_attn_scalar": 5,
    "sliding_window": WINDOW,
    "layer_types": _ALTERNATING,
    "final_logit_softcapping": 4.0,
}

#: Type of transformers' model -> its parameters.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": MODELS["gpt2"]["params"],
    "llama": _COMMON,
    "qwen3": {
        **_COMMON,
        "head_dim": 12,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": _ALTERNATING,
    },
    "smollm3": {
        **_COMMON,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
    },
    "mistral": {**_COMMON, "sliding_window": WINDOW},
    "phi3": {**_COMMON, "sliding_window": WINDOW},
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 2.0},
    "gemma3_text": _GEMMA,
}


def model(family: str, attention: str = "sdpa", **params: Any) -> dict[str, Any]:
    """Return the backbone part of a config, in float64, with further parameters of the model."""
    return {
        "type": family,
        "params": {**FAMILIES[family], **params},
        "dtype": "float64",
        "attention": attention,
    }


@cache
def built(family: str, attention: str, writer: str, reader: str) -> Memory:
    """Return the memory of a writer and a reader by their names; the same one every time."""
    return Memory.from_config(
        {
            "backbone": model(family, attention),
            "writer": {"name": writer},
            "reader": {"name": reader},
        }
    )


def weight(language_model: nn.Module, layer: int, name: str) -> Any:
    """Return a view (out, in) of the weight of projection q, k, v or o, by the layout of the family's own code."""
    module: Any = attention_modules(language_model)[layer]
    if hasattr(module, f"{name}_proj"):
        return getattr(module, f"{name}_proj").weight.data
    if hasattr(module, "c_attn"):
        return (
            module.c_proj.weight.data.T
            if name == "o"
            else module.c_attn.weight.data.T.chunk(3)["qkv".index(name)]
        )
    # Phi-3: 4 query heads, then 2 of keys, then 2 of values, each 8 wide.
    start, end = {"q": (0, 32), "k": (32, 48), "v": (48, 64)}[name]
    return module.qkv_proj.weight.data[start:end]
