"""The laws on a small transformers model of every family, with a mechanism of another kind on each; a few cases each.

`memwrite check --all --backbone all` holds every pair to all of them on every family.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
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
}


#: Of the mechanism alone, whatever the model.
OWN = {
    "purity",
    "no-side-effects",
    "nothing-left-behind",
    "weights",
    "sessions",
    "information-bound",
}


def test_no_family_is_left_out() -> None:
    assert PAIRS.keys() | {"tiny"} == BACKBONES.keys()


BOUND = [
    replace(law, law=replace(law.law, examples=min(law.law.examples, 4)))
    for family, (writer, reader) in PAIRS.items()
    for law in bind(
        pair_of((registry().writer(writer), registry().reader(reader)), backbone=family)
    )
    if law.law.name not in OWN
]


@pytest.mark.parametrize("law", BOUND, ids=[f"{b.pair.backbone}-{b.law.name}" for b in BOUND])
def test_the_laws(law) -> None:
    law()
