"""Orthogonal memory (LAVO) against its oracle, and the exact laws of orthogonal directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_bases import naive
from memwrite_bases.lavo import directions
from memwrite_specs.testing import MODELS
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError, InputError

ROWS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]


def build(family: str = "llama", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": "float64", "attention": "eager"},
            "writer": {"name": "lavo", "params": {"slots": 2, **params}},
            "reader": {"name": "key-value"},
        }
    )


def close(found: Tensor, expected: Tensor, bar: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, atol=bar, rtol=bar)


@settings(max_examples=20)
@given(st.integers(1, 64), st.data(), st.integers(0, 2**63 - 1))
def test_directions_are_orthonormal(width: int, data: Any, seed: int) -> None:
    """And the same for the same seed, whatever else draws random numbers."""
    count = data.draw(st.integers(1, width))
    found = directions(count, width, seed)
    close(found @ found.mT, torch.eye(count, dtype=torch.float64), 1e-12)
    torch.rand(1)
    assert torch.equal(found, directions(count, width, seed))
    if width > 1:
        assert not torch.equal(found, directions(count, width, seed - 1 if seed else 1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equals_the_oracle(family: str) -> None:
    """Over two contexts, rows of different lengths in one batch."""
    memory = build(family, seed=3)
    width = memory.backbone.info.head_dim
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(ROWS)).state
        state = memory.write(Tokens.from_rows([[1, 2], [], [3]]), state).state
        for row, contexts in enumerate([[ROWS[0], [1, 2]], [ROWS[1]], [ROWS[2], [3]]]):
            keys, values = naive.orthogonal(memory.backbone, directions(2, width, 3), contexts)
            # Rotary embeddings are float32 inside.
            close(state["keys"][row], keys, 1e-5)
            close(state["values"][row], values, 1e-5)
    assert state["latent.tokens"].tolist() == [7, 1, 4]
    assert state["next_position"].tolist() == [1, 1, 1]


def test_all_directions_make_up_the_mean() -> None:
    """As many slots as a head is wide add up to the mean; fewer, to its projection. Slots are orthogonal."""
    width = build().backbone.info.head_dim
    whole, part = build(slots=width), build(slots=2)
    tokens = Tokens.from_rows([ROWS[0]])
    embedded = whole.backbone.embed(tokens.ids)
    with torch.no_grad():
        cache = whole.backbone.forward(embedded, use_cache=True).key_values
        assert cache is not None
        mean = cache.values.mean(3)
        values = whole.write(tokens).state["values"]
        close(values.sum(3), mean)
        products = values @ values.mT
        close(products, torch.diag_embed(products.diagonal(dim1=-2, dim2=-1)))
        base = directions(2, width, 0)
        close(part.write(tokens).state["values"].sum(3), mean @ base.mT @ base)


def test_what_is_kept_is_counted() -> None:
    memory = build()
    info = memory.backbone.info
    heads = info.layers * info.kv_heads
    assert memory.writer.spec.floats == 2 * heads * 2 * (info.head_dim + 1) + 2 + 2


def test_a_context_that_was_not_read_is_refused() -> None:
    memory = build()
    state = memory.write(Tokens.from_rows([[5]])).state
    with pytest.raises(InputError, match="it has read fewer tokens"):
        memory.forget(Tokens.from_rows([[5, 6]]), state)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"slots": 0}, "slots must be at least 1"),
        ({"seed": -1}, "seed must be from 0"),
        ({"slots": 1000}, "slots = 1000, but heads of the width"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**params)
