"""A tiny random model of every family that the core supports; their windows are short enough to matter."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from memwrite import Memory
from memwrite.backbones.decoder_layers import attention_modules
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

# Falcon says elsewhere how many key heads it has, and divides the rest as it likes.
_WIDE = {k: v for k, v in _COMMON.items() if k not in ("num_key_value_heads", "intermediate_size")}

#: More types, a word behind a colon telling variants of one type apart.
NEWER_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {
        **_COMMON,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": _ALTERNATING,
    },
    "olmo": {**_COMMON, "clip_qkv": 0.8},
    "olmo2": _COMMON,
    "olmo3": {**_COMMON, "sliding_window": WINDOW, "layer_types": _ALTERNATING},
    "granite": {
        **_COMMON,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "cohere": {**_COMMON, "logit_scale": 0.5, "pad_token_id": 0},
    "gpt_neox": {k: v for k, v in _COMMON.items() if k != "num_key_value_heads"},
    "falcon:new": {**_WIDE, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon:one-key-head": {**_WIDE, "multi_query": True},
    "falcon:sequential": {**_WIDE, "multi_query": False, "parallel_attn": False, "bias": True},
    "stablelm": {**_COMMON, "use_qkv_bias": True, "qk_layernorm": True},
    "stablelm:parallel": {**_COMMON, "use_parallel_residual": True},
    "nemotron": {**_COMMON, "head_dim": 12},
    "phi": _COMMON,
    "starcoder2": _COMMON,
}

_RECURRENT = ["linear_attention", "full_attention"] * 2
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 4,
}  # fmt: skip
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_FOUR: dict[str, Any] = {**_COMMON, "num_hidden_layers": 4}
_NEMOTRON = {k: v for k, v in _COMMON.items() if k != "num_hidden_layers"}
_SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "initializer_range": 0.2,
}  # fmt: skip

#: Types of models with recurrent layers -> their parameters.
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**_FOUR, "head_dim": 12, "layer_types": _RECURRENT, **_DELTA, "num_experts": 0},
    "qwen3_5_text": {**_FOUR, "head_dim": 16, "layer_types": _RECURRENT, **_DELTA},
    "olmo_hybrid": {**_FOUR, "layer_types": _RECURRENT, **_DELTA},
    "lfm2": {**_FOUR, "layer_types": ["conv", "full_attention"] * 2},
    "nemotron_h": {
        **_NEMOTRON,
        "head_dim": 12,
        "layers_block_type": [
            "linear_attention",
            "full_attention",
            "mlp",
            "linear_attention",
            "full_attention",
        ],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 4,
        # transformers holds steps to this limit in longer pieces of a text, and not in single tokens.
        "time_step_min": 1e-12,
    },
    "falcon_h1": {
        **_COMMON,
        "num_hidden_layers": 2,
        **_MAMBA,
        "mamba_d_ssm": 64,
        "embedding_multiplier": 3.0,
        "lm_head_multiplier": 0.5,
    },
    "granitemoehybrid": {
        **_FOUR,
        **_MAMBA,
        "layer_types": _RECURRENT,
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
        "position_embedding_type": "rope",
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
    },
    "bamba": {**_FOUR, **_MAMBA, "attn_layer_indices": [1, 3]},
    "mamba": _SMALL,
    "mamba2": {**_SMALL, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 4},
}


def architecture(family: str) -> str:
    """Return the type of transformers' model that a family is."""
    return family.partition(":")[0]


def model(family: str, attention: str = "sdpa", **params: Any) -> dict[str, Any]:
    """Return the backbone part of a config, in float64, with further parameters of the model."""
    return {
        "type": architecture(family),
        "params": {**{**FAMILIES, **NEWER_FAMILIES, **HYBRIDS}[family], **params},
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
    """Return the weight (out, in) of projection q, k, v or o, by the layout of the family's own code.

    It is a view, but where a module packs projections head by head.
    """
    held, rows = _rows(language_model, layer, name)
    return held[rows]


def add(language_model: nn.Module, layer: int, name: str, change: Tensor) -> None:
    """Add (out, in) to the weight of projection q, k, v or o in place."""
    held, rows = _rows(language_model, layer, name)
    held[rows] += change


def _rows(language_model: Any, layer: int, name: str) -> tuple[Tensor, slice | Tensor]:
    """Return a module's weight (out, in), and which of its rows compute a projection."""
    module: Any = attention_modules(language_model)[layer]
    config, everything = language_model.config, slice(None)
    for own in (f"{name}_proj", *(("dense", "out_proj") if name == "o" else ())):
        if hasattr(module, own):
            held = getattr(module, own).weight.data
            if own == "q_proj" and config.model_type in ("qwen3_next", "qwen3_5_text"):
                # A gate stands behind the query of every head.
                every = torch.arange(held.shape[0]).view(4, 2, -1)
                return held, every[:, 0].flatten()
            return held, everything
    if hasattr(module, "c_attn"):
        if name == "o":
            return module.c_proj.weight.data.T, everything
        start = 32 * "qkv".index(name)
        return module.c_attn.weight.data.T, slice(start, start + 32)
    if hasattr(module, "qkv_proj"):
        # Phi-3: 4 query heads, then 2 of keys, then 2 of values, each 8 wide.
        start, end = {"q": (0, 32), "k": (32, 48), "v": (48, 64)}[name]
        return module.qkv_proj.weight.data, slice(start, end)
    # GPT-NeoX and Falcon: the query heads that share a key head, that key head, its value head, and so on.
    held = module.query_key_value.weight.data
    every = torch.arange(held.shape[0]).view(_key_heads(config), -1, 8)
    part = {"q": slice(-2), "k": slice(-2, -1), "v": slice(-1, None)}[name]
    return held, every[:, part].flatten()


def _key_heads(config: Any) -> int:
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return 2
    return 1 if config.model_type == "falcon" and config.multi_query else 4
