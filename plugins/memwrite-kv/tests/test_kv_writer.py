"""The writer of the family: budgets, sinks, positions that run out, and what is read in the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memwrite_specs.testing import MODELS, tolerance

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError

ROWS = [[5, 6, 7, 8, 9, 40, 41, 42, 43], [10, 11], [11, 12, 13, 11, 12, 90, 91]]
QUERY = Tokens.from_rows([[70, 71, 72]] * 3)


def build(family: str = "llama", writer: str = "h2o", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": "float64", "attention": "eager"},
            "writer": {"name": writer, "params": params},
            "reader": {"name": "key-value"},
        }
    )


@torch.no_grad()
def logits(memory: Memory, rows: list[list[int]] = ROWS) -> torch.Tensor:
    state = memory.write(Tokens.from_rows(rows)).state
    return memory.read(state, QUERY.rows(slice(0, len(rows)))).logits


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("params", [{"slots": 16}, {"ratio": 1.0}])
def test_a_budget_for_everything_is_the_full_context(family: str, params: dict[str, Any]) -> None:
    full = build(family, "full-context")
    torch.testing.assert_close(logits(build(family, **params)), logits(full), **tolerance(family))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_implementation_changes_nothing(attention: str) -> None:
    memory = build(slots=4)
    other = Memory.from_config(memory.config, [f"backbone.attention={attention}"])
    torch.testing.assert_close(logits(other), logits(memory), **tolerance("llama"))


def test_first_and_last_tokens_are_kept_whatever_they_are_worth() -> None:
    memory = build(writer="knorm", slots=5, sinks=2, recent=2)
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(ROWS)).state
    places = state["latent.position"]
    assert (places[0, ..., :2] == torch.tensor([0, 1])).all()
    assert (places[0, ..., 3:5] == torch.tensor([7, 8])).all()
    with torch.no_grad():
        state = memory.write(Tokens.from_rows([[80] * 6] * 3), state).state
    assert (state["latent.position"][0, ..., :2] == torch.tensor([0, 1])).all()
    assert (state["latent.position"][0, ..., 3:5] == torch.tensor([13, 14])).all()


def test_bytes_are_a_budget() -> None:
    """As many slots as they hold, with all that goes with a slot."""
    slots = build(slots=7).writer.spec.nbytes
    for given, expected in ((slots, 7), (slots - 1, 6), (slots + 1, 7)):
        spec = build(bytes=given).writer.spec
        assert spec.shapes["mask"] == (expected,)
        assert spec.nbytes <= given


def test_a_ratio_grows_with_the_context_and_counts_each_row_for_itself() -> None:
    memory = build(ratio=0.5, sinks=1)
    with torch.no_grad():
        first = memory.write(Tokens.from_rows(ROWS)).state
        second = memory.write(Tokens.from_rows([[1, 2], [3], [4, 5, 6, 7, 8]]), first).state
    assert first["mask"].sum(1).tolist() == [5, 1, 4]
    assert second["mask"].sum(1).tolist() == [6, 2, 7]
    assert not memory.writer.spec.bounded


def test_positions_that_run_out_are_rewound() -> None:
    """Row by row: the slots stand at 0, 1, ... with their keys turned, and a query finds free positions."""
    memory = build(slots=4)
    long, short = [7 + i for i in range(60)], [9, 10]
    with torch.no_grad():
        state = memory.write(Tokens.from_rows([long, short])).state
        assert state["next_position"].tolist() == [4, 2]
        assert (state["latent.position"][0] == torch.arange(4)).all()
        found = []
        memory.backbone.forward(
            memory.backbone.embed(torch.tensor([long])), observe=lambda a: found.append(a.keys)
        )
        keys = torch.stack(found, 1)
        # The first slot is the first token, where nothing was turned.
        torch.testing.assert_close(
            state["keys"][0, ..., 0, :], keys[0, ..., 0, :], **tolerance("llama")
        )
        last = build(writer="streaming-llm", slots=4, sinks=1)
        state = last.write(Tokens.from_rows([long])).state
        by = torch.tensor([[1 - 57, 2 - 58, 3 - 59]])
        turned = memory.backbone.rotate(keys[..., 57:, :], by)
        torch.testing.assert_close(state["keys"][..., 1:, :], turned, **tolerance("llama"))


@pytest.mark.parametrize("writer", ["h2o", "kvzip", "attention-matching", "mean-pool"])
def test_a_context_of_any_length_is_written_and_leaves_room_for_a_query(writer: str) -> None:
    memory = build(writer=writer, slots=8)
    positions = memory.backbone.info.positions
    with torch.no_grad():
        for length in range(positions // 2, positions + 4):
            state = memory.write(Tokens.from_rows([[i % 90 for i in range(length)]])).state
            assert state["mask"].sum() == 8
            memory.read(state, Tokens.from_rows([[1] * (positions // 4)]))


@pytest.mark.parametrize("family", MODELS)
def test_a_stream_goes_on_without_end(family: str) -> None:
    memory = build(family, slots=4)
    state = None
    with torch.no_grad():
        for turn in range(8):
            state = memory.write(Tokens.from_rows([[turn + i for i in range(20)]]), state).state
            assert int(state["next_position"]) <= 48
            assert memory.read(state, QUERY.rows(slice(0, 1))).logits.isfinite().all()
        whole = memory.write(Tokens.from_rows([list(range(200))])).state
    assert whole["mask"].all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"slots": 0}, "slots must be at least 1"),
        ({"bytes": 0}, "bytes must be at least 1"),
        ({"bytes": 100}, "100 bytes hold 0 slots"),
        ({"sinks": -1}, "sinks must not be negative"),
        ({"ratio": 0.0}, "ratio must be above 0"),
        ({"ratio": 0.5, "bytes": 9}, "give bytes or a ratio"),
        ({"slots": 3, "sinks": 2, "recent": 2}, "sinks and recent must fit the slots"),
        ({"queries": 0}, "queries must be at least 1"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message}"):
        build(**params)
