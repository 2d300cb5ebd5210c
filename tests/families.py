"""Small random models of every family that the core supports; their windows are short enough to matter."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from naive import padded
from support import MODELS, Lists, reader_only, without_params
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite import Memory, Tokens
from memwrite.backbones.projection_hooks import attention_modules
from memwrite.config import BackboneConfig
from memwrite.plugins.builtin.readers import PrefixReader

WINDOW = 6
LONG = 9  # tokens in a row, at most: longer than the window alone
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
    """The backbone part of a config, in float64."""
    return {
        "type": family,
        "params": {**FAMILIES[family], **params},
        "dtype": "float64",
        "attention": attention,
    }


@cache
def built(family: str, attention: str, writer: str, reader: str) -> Memory:
    return Memory.from_config(
        {
            "backbone": model(family, attention),
            "writer": {"name": writer},
            "reader": {"name": reader},
        }
    )


def saved(folder: Path, family: str, attention: str, **params: Any) -> tuple[Memory, Memory]:
    """A prefix memory from scratch, and one whose backbone went through a folder."""
    scratch = BackboneConfig(**model(family, attention, **params))
    first = reader_only(without_params(PrefixReader), scratch)
    first.model.save_pretrained(folder)
    loaded = BackboneConfig(path=str(folder), dtype="float64", attention=attention)
    return first, reader_only(without_params(PrefixReader), loaded)


def weight(language_model: nn.Module, layer: int, name: str) -> Any:
    """A view (out, in) of one projection's weight, by the layouts of the families' own papers and code."""
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


@st.composite
def many(draw: Any) -> tuple[Lists, Tokens]:
    """Queries (B, Q, T), their B·Q rows of tokens beside them."""
    batch, each = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    lists, flat = draw(padded(batch * each, LONG))
    return lists, flat.map(lambda tensor: tensor.reshape(batch, each, -1))


def plain(memory: Memory, ids: list[int]) -> Tensor:
    """Logits (len(ids), V) of the model's own forward, which embeds for itself."""
    logits: Tensor = memory.model(torch.tensor([ids], dtype=torch.int64), use_cache=False).logits[0]
    return logits


def continued(model: Any, options: dict[str, Any], **inputs: Tensor) -> Tensor:
    """What transformers' own generate gives for one row."""
    new: Tensor = model.generate(
        **inputs,
        attention_mask=torch.ones(next(iter(inputs.values())).shape[:2], dtype=torch.int64),
        eos_token_id=257,
        pad_token_id=257,
        do_sample=False,
        max_new_tokens=5,
        **options,
    )
    return new


def filled(row: Tensor, width: int) -> Tensor:
    return F.pad(row, (0, width - row.shape[-1]), value=257)
