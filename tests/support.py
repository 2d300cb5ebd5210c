"""Tiny random models that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from memwrite import Memory
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig, Config
from memwrite.plugins.builtin.readers import NoParams

#: How much more than in the tests is to be tried; `make soak` asks for fifty times as much.
SOAK = float(os.environ.get("SOAK", "1"))

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
Lists = list[list[int]]

TIED = {**MODELS["llama"]["params"], "tie_word_embeddings": True}
FAMILIES: dict[str, dict[str, Any]] = {**MODELS, "llama-tied": {"type": "llama", "params": TIED}}
each_backbone = pytest.mark.parametrize(
    ("family", "attention"),
    [(family, attention) for family in FAMILIES for attention in ("eager", "sdpa")],
)


def bar(family: str) -> dict[str, float]:
    """Llama's norm computes in float32 whatever the model's dtype."""
    return {"atol": 1e-9, "rtol": 1e-9} if family == "gpt2" else {"atol": 1e-5, "rtol": 1e-5}


def described(family: str, attention: str = "sdpa", **changes: Any) -> BackboneConfig:
    """A backbone of FAMILIES in float64."""
    return BackboneConfig(
        **{**FAMILIES[family], "dtype": "float64", "attention": attention, **changes}
    )


def reader_only(reader: Any, config: BackboneConfig) -> Memory:
    """A memory without a writer."""
    return Memory(load_backbone(config), None, reader, Config(config)).eval()


def without_params(reader: Any) -> Any:
    """A reader of a class that sets nothing."""
    return reader(NoParams(), None, None)
