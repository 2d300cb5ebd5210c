"""Mean pooling, and heads that share a budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memwrite_kv.pooling import groups
from memwrite_kv.selection import Chosen, shared_among_heads
from memwrite_specs.testing import MODELS

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError
from memwrite.protocols import LayerActivations

ROWS = [[5, 6, 7, 8, 9, 40, 41, 42, 43], [10, 11], [11, 12, 13, 11, 12, 90, 91]]


def build(family: str, writer: str, **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": "float64", "attention": "eager"},
            "writer": {"name": writer, "params": params},
            "reader": {"name": "key-value"},
        }
    )


def test_groups_are_even_and_sinks_stand_alone() -> None:
    mask = torch.tensor([[True] * 9, [True, True] + [False] * 7, [False, *[True] * 8]])
    found = groups(mask, torch.tensor([4, 2, 4]), 1)
    assert found[0].tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert found[1].tolist() == [0, 1] + [9] * 7
    assert found[2, 1:].tolist() == [0, 1, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("family", MODELS)
def test_a_slot_is_the_mean_of_its_tokens(family: str) -> None:
    """Of their keys at one place, and of their values; in a second write old slots count for what they hold."""
    memory = build(family, "mean-pool", slots=4)
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(ROWS)).state
        again = memory.write(Tokens.from_rows([[50, 51]] * 3), state).state
        seen: list[LayerActivations] = []
        memory.backbone.forward(memory.backbone.embed(torch.tensor(ROWS[:1])), observe=seen.append)
    for layer in seen:
        for slot, tokens in enumerate(([0], [1, 2, 3], [4, 5, 6], [7, 8])):
            middle = round(sum(tokens) / len(tokens))
            keys = layer.keys[:, :, tokens]
            try:
                by = torch.tensor([[middle - token for token in tokens]])
                keys = memory.backbone.rotate(keys[:, None], by, [layer.layer])[:, 0]
            except ConfigError:
                pass
            for name, tensor in (("keys", keys), ("values", layer.values[:, :, tokens])):
                found = state[name][0, layer.layer, :, slot]
                torch.testing.assert_close(found, tensor.mean(2)[0], atol=1e-5, rtol=1e-5)
            assert int(state["latent.position"][0, layer.layer, 0, slot]) == middle
    assert state["latent.weight"][0, 0, 0].tolist() == [1, 3, 3, 2]
    assert again["latent.weight"][0, 0, 0].tolist() == [1, 6, 3, 1]


def test_heads_share_a_budget() -> None:
    """The best of both heads together; a head that scores low keeps a fifth of its slots."""
    score = torch.tensor([[[9.0, 8, 7, 6, 5], [4.0, 3, 2, 1, 0]]])
    chosen = Chosen(torch.arange(5).expand(1, 2, 5), torch.ones(1, 5, dtype=torch.bool))
    used = shared_among_heads(score, chosen, 0.5)
    assert used.tolist() == [[[True, True, True, True, False], [True, False, False, False, False]]]
    assert shared_among_heads(score, chosen, 1.0).all()


@pytest.mark.parametrize("family", MODELS)
def test_a_slot_that_no_head_uses_changes_nothing(family: str) -> None:
    """What is read is the same whatever stands in hidden slots, and what is hidden stays so in later writes."""
    memory = build(family, "h2o", slots=4, used=0.5)
    query = Tokens.from_rows([[70, 71, 72]] * 3)
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(ROWS)).state
        hidden = state["bias"].isneginf()
        assert hidden.any()
        assert hidden[0].sum() == hidden[0].numel() // 2
        other = {**state.tensors, "values": state["values"].masked_fill(hidden[..., None], 7.0)}
        changed = type(state)(state.spec, other)
        torch.testing.assert_close(
            memory.read(changed, query).logits, memory.read(state, query).logits
        )
        later = memory.write(Tokens.from_rows([[50] * 6] * 3), state).state
        assert memory.read(later, query).logits.isfinite().all()


def test_wrong_share() -> None:
    with pytest.raises(ConfigError, match="used must be above 0 and at most 1"):
        build("gpt2", "h2o", used=0.0)
