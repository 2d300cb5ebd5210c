"""Scores by reference queries, and Attention Matching, against their oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memwrite_kv import matching, naive
from memwrite_kv.matching import Reference
from memwrite_kv.selection import Chosen, best
from memwrite_specs.testing import MODELS

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError
from memwrite.protocols import LayerActivations

SLOTS = 4
ROWS = [[5, 6, 7, 8, 9, 40, 41, 42, 43], [10, 11], [11, 12, 13, 11, 12, 90, 91]]


def build(family: str = "llama", writer: str = "compact", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": "float64", "attention": "eager"},
            "writer": {"name": writer, "params": params},
            "reader": {"name": "key-value"},
        }
    )


def observed(memory: Memory, ids: list[int], **past: Any) -> list[LayerActivations]:
    seen: list[LayerActivations] = []
    embeddings = memory.backbone.embed(torch.tensor([ids]))
    memory.backbone.forward(embeddings, observe=seen.append, **past)
    return seen


def plain(layer: LayerActivations) -> naive.Seen:
    return naive.Seen(layer.queries[0], layer.keys[0], layer.values[0], layer.scale)


def moved(memory: Memory, layer: LayerActivations, by: torch.Tensor) -> torch.Tensor:
    """Return the queries (H, T, Dh) of one layer, moved by (T,) positions."""
    try:
        return memory.backbone.rotate(layer.queries[:, None], by[None], [layer.layer])[0, 0]
    except ConfigError:
        return layer.queries[0]


def repetition(memory: Memory, ids: list[int]) -> list[LayerActivations]:
    with torch.no_grad():
        embeddings = memory.backbone.embed(torch.tensor([ids]))
        read = memory.backbone.forward(embeddings, use_cache=True).key_values
        return observed(memory, ids, past=read)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    ("writer", "params"),
    [
        ("compact", {}),
        ("compact", {"score": "max", "value_norm": False, "refit": False}),
        ("compact", {"queries": "repeat", "score": "mean"}),
        ("attention-matching", {}),
        ("attention-matching", {"queries": "own", "score": "mean"}),
    ],
)
def test_compaction_equals_the_oracle(family: str, writer: str, params: dict[str, Any]) -> None:
    memory = build(family, writer, slots=SLOTS, **params)
    config = memory.writer.config
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(ROWS)).state
    for row, ids in enumerate(ROWS):
        again = repetition(memory, ids)
        for layer in observed(memory, ids):
            seen = plain(layer)
            by = len(ids) - torch.arange(len(ids))
            later = moved(memory, layer, by)
            if config.queries == "repeat":
                later = again[layer.layer].queries[0]
            scores = naive.compact(seen, later, config.score, config.value_norm)
            count = min(SLOTS, len(ids))
            for head, score in enumerate(scores):
                index = naive.chosen(score, SLOTS, config.sinks, 0)
                found = {n: state[n][row, layer.layer, head, :count] for n in ("keys", "values")}
                torch.testing.assert_close(
                    found["keys"], seen.keys[head][index], atol=1e-5, rtol=1e-5
                )
                bias, values = naive.matched(seen, later, head, index, config.bias)
                if not config.refit:
                    values = seen.values[head][index]
                torch.testing.assert_close(found["values"], values, atol=2e-4, rtol=2e-4)
                if config.bias:
                    given = state["bias"][row, layer.layer, head, :count]
                    torch.testing.assert_close(given, bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_expected_attention_equals_the_oracle(family: str) -> None:
    memory = build(family, "expected-attention", slots=SLOTS, sinks=1, future=5)
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(ROWS)).state
    for row, ids in enumerate(ROWS):
        for layer in observed(memory, ids):
            flat = moved(memory, layer, -torch.arange(len(ids)))
            width = flat.shape[-1]
            basis = LayerActivations(
                layer.layer, layer.hidden, torch.eye(width, dtype=torch.float64)[None, :, None].expand(-1, -1, 5, -1),
                layer.keys, layer.values, layer.scale,
            )  # fmt: skip
            rotations = moved(memory, basis, len(ids) + torch.arange(5)).permute(1, 2, 0)
            scores = naive.expected_attention(plain(layer), flat, 1, rotations, True)
            for head, score in enumerate(scores):
                index = naive.chosen(score, SLOTS, 1, 0)
                found = state["keys"][row, layer.layer, head, : len(index)]
                torch.testing.assert_close(found, layer.keys[0, head][index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("chunk", [3, 512])
def test_kvzip_equals_the_oracle(family: str, chunk: int) -> None:
    """Each chunk of the repetition stands right behind the context."""
    memory = build(family, "kvzip", slots=SLOTS, chunk=chunk)
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(ROWS)).state
        for row, ids in enumerate(ROWS):
            embeddings = memory.backbone.embed(torch.tensor([ids]))
            read = memory.backbone.forward(embeddings, use_cache=True).key_values
            first = observed(memory, ids)
            most: dict[int, list[list[float]]] = {}
            for start in range(0, len(ids), chunk):
                seen: list[LayerActivations] = []
                part = embeddings[:, start : start + chunk]
                memory.backbone.forward(part, past=read, observe=seen.append)
                for layer in seen:
                    new = naive.reconstruction(plain(layer), len(ids))
                    old = most.get(layer.layer, new)
                    most[layer.layer] = [
                        list(map(max, a, b)) for a, b in zip(old, new, strict=True)
                    ]
            for layer in first:
                for head, score in enumerate(most[layer.layer]):
                    index = naive.chosen(score, SLOTS, 1, 0)
                    found = state["keys"][row, layer.layer, head, : len(index)]
                    wanted = layer.keys[0, head][index]
                    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_fit_lowers_its_own_objective() -> None:
    """The bias brings the mass nearer, and refitted values the output, than the plain slots."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 2, 40, 30, generator=random, dtype=torch.float64)
    values = torch.randn(1, 2, 30, 8, generator=random, dtype=torch.float64)
    reference = Reference(logits, values, torch.ones(1, 40, dtype=torch.bool))
    mask, count = torch.ones(1, 30, dtype=torch.bool), torch.tensor([6])
    kept = best(reference.weights.sum(2), mask, count, 6, 1, 0)
    relative = (logits - logits.amax(-1, keepdim=True)).exp()

    def mass_error(bias: torch.Tensor) -> float:
        some = kept.columns(relative, 0) * bias.exp()[:, :, None]
        return float((some.sum(-1) - relative.sum(-1)).square().sum())

    def output_error(values_: torch.Tensor, bias: torch.Tensor) -> float:
        some = (kept.columns(logits, -torch.inf) + bias[:, :, None]).softmax(-1)
        return float((some @ values_ - reference.weights @ values).square().sum())

    none = torch.zeros(1, 2, 6, dtype=torch.float64)
    bias = matching.mass(reference, kept)
    assert mass_error(bias) < 0.5 * mass_error(none)
    plain_values = kept.of(values)
    for chosen in (none, bias):
        fitted = matching.values(reference, kept, chosen)
        assert output_error(fitted, chosen) < 0.5 * output_error(plain_values, chosen)


def test_a_fit_to_everything_changes_nothing() -> None:
    """With all slots kept and enough queries, the bias is 0 and the values are their own."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 1, 50, 6, generator=random, dtype=torch.float64)
    values = torch.randn(1, 1, 6, 4, generator=random, dtype=torch.float64)
    reference = Reference(logits, values, torch.ones(1, 50, dtype=torch.bool))
    kept = Chosen(torch.arange(6)[None, None], torch.ones(1, 6, dtype=torch.bool))
    bias = matching.mass(reference, kept)
    torch.testing.assert_close(bias, torch.zeros_like(bias), atol=1e-9, rtol=0)
    torch.testing.assert_close(matching.values(reference, kept, bias), values)


def test_few_queries_leave_the_values_where_they_say_nothing() -> None:
    """Of two slots that they cannot tell apart both move alike; without any query nothing moves."""
    logits = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    values = torch.arange(8, dtype=torch.float64).reshape(1, 1, 4, 2) ** 2
    kept = Chosen(torch.tensor([[[0, 1]]]), torch.ones(1, 2, dtype=torch.bool))
    none = torch.zeros(1, 1, 2, dtype=torch.float64)
    asked = Reference(logits, values, torch.ones(1, 3, dtype=torch.bool))
    change = matching.values(asked, kept, none) - values[:, :, :2]
    torch.testing.assert_close(change[..., 0, :], change[..., 1, :])
    torch.testing.assert_close(
        (values[:, :, :2] + change).mean(2), values.mean(2), atol=0, rtol=1e-3
    )
    silent = Reference(logits, values, torch.zeros(1, 3, dtype=torch.bool))
    torch.testing.assert_close(matching.values(silent, kept, none), values[:, :, :2])


def test_rounding_of_logits_is_not_amplified() -> None:
    """However nearly the same the queries are, the fit moves by no more than a millionfold of the rounding."""
    random = torch.Generator().manual_seed(0)
    apart = 10.0 ** -torch.linspace(1, 7, 25, dtype=torch.float64)[:, None, None]
    alike = torch.randn(1, 25, 40, 2, generator=random, dtype=torch.float64)
    alike = alike @ torch.randn(1, 1, 2, 24, generator=random, dtype=torch.float64)
    logits = alike + apart * torch.randn(alike.shape, generator=random, dtype=torch.float64)
    rounding = 1e-15 * torch.randn(alike.shape, generator=random, dtype=torch.float64)
    values = torch.randn(1, 25, 24, 8, generator=random, dtype=torch.float64)
    kept = Chosen(torch.arange(10).expand(1, 25, -1), torch.ones(1, 10, dtype=torch.bool))
    found = []
    for seen in (logits, logits + rounding):
        reference = Reference(seen, values, torch.ones(1, 40, dtype=torch.bool))
        bias = matching.mass(reference, kept)
        found.append((bias, matching.values(reference, kept, torch.zeros_like(bias))))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", MODELS)
def test_on_policy_queries_come_from_compacted_layers(family: str) -> None:
    """The first layer is as without; with a budget for everything all layers are."""
    for slots, same in ((3, 1), (16, 2)):
        params: dict[str, Any] = {"slots": slots, "refit": False, "bias": False}
        states = []
        for on_policy in (False, True):
            memory = build(family, "attention-matching", **params, on_policy=on_policy, sinks=1)
            with torch.no_grad():
                states.append(memory.write(Tokens.from_rows(ROWS)).state)
        for layer in range(same):
            torch.testing.assert_close(states[0]["keys"][:, layer], states[1]["keys"][:, layer])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"score": "best"}, "score must be mean or rms or max"),
        ({"queries": "other"}, "queries must be own or repeat"),
        ({"most": 0}, "most must be at least 1"),
        ({"on_policy": True}, "on_policy goes with queries: repeat"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(writer="compact", **params)


@pytest.mark.parametrize(("writer", "params"), [("attention-matching", {}), ("h2o", {"used": 0.5})])
def test_slots_with_a_bias_grow_too(writer: str, params: dict[str, Any]) -> None:
    """With a ratio, a state that is written twice has the bias of all its slots."""
    memory = build(writer=writer, ratio=0.5, **params)
    state = memory.write(Tokens.from_rows([ROWS[0]])).state
    assert state["bias"].shape[-1] == 5
    again = memory.write(Tokens.from_rows([ROWS[2]]), state).state
    assert again["bias"].shape == again["keys"].shape[:-1] == (1, 2, 2, 9)
    assert bool(memory.read(again, Tokens.from_rows([[5, 6]])).logits.isfinite().all())
