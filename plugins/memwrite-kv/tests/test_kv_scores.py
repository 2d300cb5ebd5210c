"""Every score against its oracle, over writes onto what is kept, beside other rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memwrite_kv import naive
from memwrite_specs.testing import MODELS

from memwrite import Memory, Tokens
from memwrite.protocols import KeyValues, LayerActivations

ROWS = [[5, 6, 7, 8, 9, 40, 41, 42, 43], [10, 11], [11, 12, 13, 11, 12, 90, 91]]
MORE = [[50, 51, 52], [60, 61, 62, 63, 64, 65, 66], [70]]
SLOTS = 4


def build(family: str = "gpt2", writer: str = "h2o", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": "float64", "attention": "eager"},
            "writer": {"name": writer, "params": {"slots": SLOTS, **params}},
            "reader": {"name": "key-value"},
        }
    )


class Oracle:
    """Reads one text after the other with its own loop over layers and heads."""

    def __init__(self, memory: Memory, score: Callable[[naive.Seen, int], Any]) -> None:
        self.backbone, self.score = memory.backbone, score
        self.sinks, self.recent = memory.writer.config.sinks, memory.writer.config.recent
        self.past: KeyValues | None = None

    def write(self, ids: list[int]) -> KeyValues:
        seen: list[LayerActivations] = []
        self.backbone.forward(
            self.backbone.embed(torch.tensor([ids])), past=self.past, observe=seen.append
        )
        keys, values = [], []
        for layer in seen:
            scores = self.score(
                naive.Seen(layer.queries[0], layer.keys[0], layer.values[0], layer.scale),
                layer.layer,
            )
            index = [naive.chosen(row, SLOTS, self.sinks, self.recent) for row in scores]
            self.kept(layer.layer, index)
            keys.append(torch.stack([k[i] for k, i in zip(layer.keys[0], index, strict=True)]))
            values.append(torch.stack([v[i] for v, i in zip(layer.values[0], index, strict=True)]))
        start = 0 if self.past is None else int(self.past.next_position)
        self.past = KeyValues(
            torch.stack(keys)[None],
            torch.stack(values)[None],
            torch.ones(1, keys[0].shape[1], dtype=torch.bool),
            torch.tensor([start + len(ids)]),
        )
        return self.past

    def kept(self, layer: int, index: list[list[int]]) -> None:
        """Take note of the slots that a layer keeps."""


class AccumulatingOracle(Oracle):
    def __init__(self, memory: Memory, value_norm: bool) -> None:
        super().__init__(memory, self._score)
        self.norm = value_norm
        self.numbers: dict[int, tuple[list[list[float]], list[list[float]]]] = {}

    def _score(self, seen: naive.Seen, layer: int) -> list[list[float]]:
        none = [[] for _ in seen.keys], [[] for _ in seen.keys]
        attention, asked = self.numbers.get(layer, none)
        scores, *numbers = naive.accumulated_attention(seen, attention, asked, self.norm)
        self.numbers[layer] = (numbers[0], numbers[1])
        return scores

    def kept(self, layer: int, index: list[list[int]]) -> None:
        first, second = (
            [[row[i] for i in kept] for row, kept in zip(numbers, index, strict=True)]
            for numbers in self.numbers[layer]
        )
        self.numbers[layer] = (first, second)


SCORES: dict[str, tuple[dict[str, Any], Callable[[Memory], Oracle]]] = {
    "h2o": ({"value_norm": False}, lambda m: AccumulatingOracle(m, False)),
    "h2o times the value's norm": ({"sinks": 2}, lambda m: AccumulatingOracle(m, True)),
    "snapkv": (
        {"window": 3, "pool": 3},
        lambda m: Oracle(m, lambda seen, _: naive.last_queries(seen, 3, 3)),
    ),
    "knorm": ({"recent": 1}, lambda m: Oracle(m, lambda seen, _: naive.key_norm(seen))),
    "keydiff": ({}, lambda m: Oracle(m, lambda seen, _: naive.key_diversity(seen))),
    "streaming-llm": (
        {"rewind": False, "sinks": 1},
        lambda m: Oracle(m, lambda seen, _: naive.first_and_last(seen)),
    ),
    "lacache": (
        {"step": 2},
        lambda m: Oracle(m, lambda seen, layer: naive.ladder(seen, layer, SLOTS, 1, 2)),
    ),
    "lacache of single tokens": (
        {"step": 1, "sinks": 0},
        lambda m: Oracle(m, lambda seen, layer: naive.ladder(seen, layer, SLOTS, 0, 1)),
    ),
}


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", SCORES)
def test_equals_the_oracle(family: str, name: str) -> None:
    params, oracle_of = SCORES[name]
    memory = build(family, name.split(" ", maxsplit=1)[0], **params)
    with torch.no_grad():
        first = memory.write(Tokens.from_rows(ROWS)).state
        second = memory.write(Tokens.from_rows(MORE), first).state
        for row, texts in enumerate(zip(ROWS, MORE, strict=True)):
            oracle = oracle_of(memory)
            for state, ids in zip((first, second), texts, strict=True):
                expected = oracle.write(ids)
                real = state["mask"][row]
                assert int(real.sum()) == expected.mask.shape[1]
                for part in ("keys", "values"):
                    found, wanted = state[part][row][:, :, real], getattr(expected, part)[0]
                    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
                    assert not state[part][row][:, :, ~real].any()
                assert state["next_position"][row] == expected.next_position[0]


def test_few_queries_are_spread_over_the_context_and_the_last_token_asks() -> None:
    from memwrite_kv.candidates import Asking

    asking = Asking.evenly(torch.tensor([10, 3, 0]), 4)
    assert asking.index[0].tolist() == [1, 4, 6, 9]
    assert asking.index[1, :3].tolist() == [0, 1, 2]
    assert asking.real.tolist() == [[True] * 4, [True, True, True, False], [False] * 4]
    last = Asking.last(torch.tensor([5, 2]), 3)
    assert last.index[0].tolist() == [2, 3, 4]
    assert last.real.tolist() == [[True] * 3, [False, True, True]]


def test_sampled_queries_give_the_share_that_they_pay() -> None:
    """With as many queries as tokens nothing changes; with fewer the counts are of those that ask."""
    ids = list(range(20, 40))
    whole, same = build(queries=None), build(queries=20)
    few = build(queries=5)
    with torch.no_grad():
        states = [m.write(Tokens.from_rows([ids])).state for m in (whole, same, few)]
    for name, tensor in states[0].tensors.items():
        torch.testing.assert_close(states[1][name], tensor)
    asked = states[2]["latent.asked"][0, 0, 0]
    position = states[2]["latent.position"][0, 0, 0].tolist()
    assert asked.tolist() == [sum(p <= t for t in (3, 7, 11, 15, 19)) for p in position]


def test_the_layers_of_a_ladder_see_every_token() -> None:
    """Eight slots of 24 tokens: one sink, and a fourth layer would see what is left."""
    from memwrite_kv.candidates import Candidates
    from memwrite_kv.scores.ladder import Ladder, LadderConfig

    score, seen = Ladder(LadderConfig(slots=9, sinks=1, step=2)), set()
    for layer in range(6):
        empty = torch.zeros(1, 1, 25, 4)
        candidates = Candidates(
            layer,
            empty,
            empty,
            torch.ones(1, 25, dtype=torch.bool),
            empty[..., 0],
            empty,
            1.0,
            None,
            {},
            0,
        )
        kept = (score(candidates).score[0, 0, 1:] >= 1).nonzero().flatten().tolist()
        assert len(kept) == 8
        seen |= {*kept}
    assert seen == {*range(24)}
