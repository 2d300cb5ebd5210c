"""The laws on a small transformers model of every family, with a mechanism of another kind on each; a few cases each.

`memwrite check --all --backbone all` holds every pair to all of them on every family.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from memwrite_specs import PAIR_LAWS
from memwrite_specs.backbones import BACKBONES
from memwrite_specs.pytest_binding import bind, pair_of

from memwrite.plugins import registry

PAIRS = {
    "gpt2": ("gradient", "prefix"),
    "llama": ("delta", "lora"),
    "qwen3": ("forward", "prefix"),
    "smollm3": ("hebbian", "lora"),
    "mistral": ("gated-delta", "lora"),
    "phi3": ("delta", "lora"),
    "gemma2": ("full-context", "key-value"),
    "gemma3": ("gradient", "prefix"),
    "olmo-hybrid": ("full-context", "key-value"),
    "mamba2": ("gradient", "prefix"),
}


#: What a model's positions, masks, windows and caches can break; the other laws concern the mechanism alone.
ONLY = PAIR_LAWS | {
    "precision",
    "finite",
    "context-erasure",
    "determinism",
    "backbone-untouched",
    "no-graph",
    "interleaving",
    "batch-invariance",
    "padding-invariance",
    "losses",
    "empty-write",
    "chunk-exact",
}


def test_no_family_is_left_out() -> None:
    assert PAIRS.keys() | {"tiny"} == BACKBONES.keys()


BOUND = [
    replace(law, law=replace(law.law, examples=min(law.law.examples, 4)))
    for family, (writer, reader) in PAIRS.items()
    for law in bind(
        pair_of((registry().writer(writer), registry().reader(reader)), backbone=family), only=ONLY
    )
]


@pytest.mark.parametrize("law", BOUND, ids=[f"{b.pair.backbone}-{b.law.name}" for b in BOUND])
def test_the_laws(law) -> None:
    law()
