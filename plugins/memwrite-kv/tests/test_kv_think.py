"""ThinK: keys of fewer channels, chosen as its loop, its authors and kvpress choose, stored small and read as zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from memwrite_kv import naive
from memwrite_kv.thin import widened
from memwrite_kv.think import counted
from memwrite_specs.testing import MODELS, tolerance
from safetensors.torch import load_file

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError
from memwrite.state import MemoryState

DATA = Path(__file__).parent / "data"
ROWS = [[5, 6, 7, 8, 9, 40, 41, 42, 43], [10, 11], [11, 12, 13, 11, 12, 90, 91]]
QUERY = Tokens.from_rows([[70, 71, 72]] * 3)


def build(writer: str = "think", reader: str = "thin-key-value", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS["llama"], "dtype": "float64", "attention": "eager"},
            "writer": {"name": writer, "params": params},
            "reader": {"name": reader},
        }
    )


@torch.no_grad()
def written(memory: Memory, *rows: list[list[int]]) -> MemoryState:
    state = None
    for some in rows:
        state = memory.write(Tokens.from_rows(some), state).state
    assert state is not None
    return state


@torch.no_grad()
def logits(memory: Memory, state: MemoryState) -> torch.Tensor:
    return memory.read(state, QUERY).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_of_kvpress_of_the_authors_and_of_the_loop(dtype: torch.dtype) -> None:
    """The authors have a key head for each query head, and ask all 20 tokens; kvpress asks the last five, by groups."""
    others, think = load_file(DATA / "others.safetensors"), load_file(DATA / "think.safetensors")
    queries, keys = others["queries"].to(dtype), others["keys"].to(dtype)
    theirs = {
        "kvpress": (queries[:, :, -5:], think["kvpress.keys"][:, :, 0] != 0),
        "authors": (queries[:, ::2], think["authors.mask"]),
    }
    for asks, kept in theirs.values():
        worth = counted(asks, torch.ones(1, asks.shape[2], dtype=torch.bool), keys)
        mine = worth.argsort(descending=True)[..., :5].sort(-1).values
        assert kept.sum(-1).tolist() == [[5, 5]]
        assert mine[0].tolist() == [head.nonzero()[:, 0].tolist() for head in kept[0]]
        assert mine[0].tolist() == naive.channels(asks[0], keys[0], 5)


def test_what_is_kept_is_what_the_selection_keeps_in_the_loops_channels() -> None:
    """After two writes, too: the first one's keys stay without what they have lost."""
    memory = build(slots=5, window=3, pool=1, pruned=0.4)
    plain = build("snapkv", "key-value", slots=5, window=3, pool=1)
    state, whole = written(memory, ROWS), written(plain, ROWS)
    asked: list[torch.Tensor] = []
    with torch.no_grad():
        memory.backbone.forward(
            memory.backbone.embed(torch.tensor([ROWS[0]])),
            observe=lambda a: asked.append(a.queries),
        )
    for layer, queries in enumerate(asked):
        keys = whole["keys"][0, layer]
        expected = naive.channels(queries[0, :, -3:], keys, memory.writer.spec.shapes["keys"][-1])
        for head, channels in enumerate(expected):
            assert state["channels"][0, layer, head].nonzero()[:, 0].tolist() == channels
            torch.testing.assert_close(state["keys"][0, layer, head], keys[head][:, channels])
    wide = widened(state)
    for name in set(whole.tensors) - {"keys"}:
        torch.testing.assert_close(wide[name], whole[name])
    torch.testing.assert_close(wide["keys"], whole["keys"] * state["channels"][..., None, :])
    again = widened(written(memory, ROWS, [[80], [81, 82], [83]]))
    assert ((again["keys"] != 0).sum(-1) <= memory.writer.spec.shapes["keys"][-1]).all()


def test_reading_takes_lost_channels_for_zeros_and_no_pruning_is_the_selection() -> None:
    plain = build("snapkv", "key-value", slots=5)
    thin = build(slots=5)
    state = written(thin, ROWS)
    torch.testing.assert_close(logits(thin, state), logits(plain, widened(state)))
    whole = build(slots=5, pruned=0.0)
    read = logits(whole, written(whole, ROWS))
    torch.testing.assert_close(read, logits(plain, written(plain, ROWS)), **tolerance("llama"))
    assert (read - logits(thin, state)).abs().max() > 1e-6


def test_keys_that_were_moved_lose_the_channels_that_moved_queries_make_least_of() -> None:
    memory = build(slots=4, window=2, pool=1, rewind=True)
    plain = build("snapkv", "key-value", slots=4, window=2, pool=1, rewind=True)
    state, whole = written(memory, ROWS[:1]), written(plain, ROWS[:1])
    asked: list[torch.Tensor] = []
    with torch.no_grad():
        memory.backbone.forward(
            memory.backbone.embed(torch.tensor(ROWS[:1])), observe=lambda a: asked.append(a.queries)
        )
    by = torch.full((1, 2), 4 - len(ROWS[0]))
    moved = memory.backbone.rotate(torch.stack([q[:, :, -2:] for q in asked], 1), by)
    for layer in range(len(asked)):
        expected = naive.channels(moved[0, layer], whole["keys"][0, layer], 5)
        found = [head.nonzero()[:, 0].tolist() for head in state["channels"][0, layer]]
        assert found == expected


def test_the_state_is_smaller_by_the_channels_and_bytes_hold_more_slots() -> None:
    plain, thin = build("snapkv", "key-value").writer.spec, build(pruned=0.5).writer.spec
    layers, heads, slots, width = plain.shapes["keys"]
    lost = layers * heads * slots * width // 2 * plain.dtype.itemsize
    assert thin.nbytes == plain.nbytes - lost + layers * heads * width
    assert build(pruned=0.5, bytes=thin.nbytes).writer.spec == thin
    assert build(pruned=0.5, bytes=thin.nbytes - 1).writer.spec.shapes["mask"] == (slots - 1,)


@pytest.mark.parametrize("pruned", [-0.1, 1.0])
def test_wrong_parameters(pruned: float) -> None:
    with pytest.raises(ConfigError, match="pruned must be at least 0 and below 1"):
        build(pruned=pruned)
