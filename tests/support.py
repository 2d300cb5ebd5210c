"""Tiny random models that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from memwrite_specs.testing import MODELS as MODELS

from memwrite import Memory
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig, Config
from memwrite.plugins.builtin.readers import NoParams

#: How much more than in the tests is to be tried; `make soak` asks for fifty times as much.
SOAK = float(os.environ.get("SOAK", "1"))

Build = Callable[..., Memory]

TIED = {**MODELS["llama"]["params"], "tie_word_embeddings": True}
FAMILIES: dict[str, dict[str, Any]] = {**MODELS, "llama-tied": {"type": "llama", "params": TIED}}
each_backbone = pytest.mark.parametrize(
    ("family", "attention"),
    [(family, attention) for family in FAMILIES for attention in ("eager", "sdpa")],
)


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
