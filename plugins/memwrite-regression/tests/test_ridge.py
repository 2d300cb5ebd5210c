"""What ridge regression does exactly, in float64, and what a memory of it forgets."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_regression import naive
from memwrite_regression.kind import condition_number, prepare, recall
from memwrite_regression.naive import recursive_least_squares
from memwrite_specs import oracles
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from memwrite import Memory, MemoryState, Tokens
from memwrite.errors import DivergenceError, InputError

EXACT = {"atol": 1e-12, "rtol": 1e-12}
seeds, widths = st.integers(0, 999), st.integers(1, 8)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(seed: int, *shape: int) -> Tensor:
    return F.normalize(normal(seed, *shape), dim=-1)


def layer(keys: Tensor, values: Tensor, weight: Tensor, ridge: float) -> dict[str, Tensor]:
    """The state of one row and head that has read these (N, ·)."""
    weighted = weight[:, None] * keys
    log_ridge = torch.full((1, 1, keys.shape[1]), ridge, dtype=torch.float64).log()
    return {
        "S": (values.mT @ weighted)[None, None],
        "G": (keys.mT @ weighted)[None, None],
        "log_ridge": log_ridge,
    }


def asked(tensors: dict[str, Tensor], queries: Tensor) -> Tensor:
    return recall(tensors, queries[None, :, None])[0, :, 0]


@given(widths, seeds, st.data())
def test_independent_keys_are_recalled_exactly(width: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, width))
    # Independent, and far enough from dependent for ten digits.
    keys = torch.linalg.qr(normal(seed, width, width)).Q[:count] + 0.1 * units(
        seed + 1, count, width
    )
    values, weight = normal(seed + 2, count, 3), normal(seed + 3, count).sigmoid()
    found = asked(layer(keys, values, weight, 1e-12), keys)
    assert_close(found, values, atol=1e-10, rtol=1e-10)


@given(widths, st.integers(0, 12), seeds, st.floats(0.01, 10))
def test_recursive_least_squares_is_ridge(width: int, count: int, seed: int, ridge: float) -> None:
    keys, values = units(seed, count, width), normal(seed + 1, count, 3)
    weight, queries = normal(seed + 2, count).sigmoid(), units(seed + 3, 4, width)
    solution = recursive_least_squares(keys, values, weight, ridge)
    assert_close(queries @ solution.mT, asked(layer(keys, values, weight, ridge), queries), **EXACT)


@given(widths, st.integers(1, 12), seeds, st.floats(0.01, 10), st.floats(0.5, 1))
def test_recursive_least_squares_forgets_like_ridge_whose_lambda_fades(
    width: int, count: int, seed: int, ridge: float, keep: float
) -> None:
    keys, values = units(seed, count, width), normal(seed + 1, count, 3)
    weight, queries = normal(seed + 2, count).sigmoid(), units(seed + 3, 4, width)
    solution = recursive_least_squares(keys, values, weight, ridge, keep)
    faded = weight * keep ** torch.arange(count - 1, -1, -1, dtype=torch.float64)
    expected = asked(layer(keys, values, faded, ridge * keep**count), queries)
    assert_close(queries @ solution.mT, expected, atol=1e-9, rtol=1e-9)


def test_it_is_the_ridge_of_the_kit() -> None:
    keys, values = units(0, 2, 6, 4), normal(1, 2, 6, 3)
    for row in range(2):
        tensors = layer(keys[row], values[row], torch.ones(6, dtype=torch.float64), 0.5)
        expected = keys[row] @ oracles.ridge(keys, values, 0.5)[row].mT
        assert_close(asked(tensors, keys[row]), expected, **EXACT)


@given(widths, seeds)
def test_a_prepared_state_answers_alike(width: int, seed: int) -> None:
    tensors = layer(units(seed, 5, width), normal(seed + 1, 5, 3), torch.ones(5).double(), 0.1)
    queries = units(seed + 2, 4, width)
    assert_close(asked(prepare(tensors), queries), asked(tensors, queries), **EXACT)


def test_a_state_of_zeros_answers_nothing() -> None:
    zeros = {
        "S": torch.zeros(1, 2, 3, 4),
        "G": torch.zeros(1, 2, 4, 4),
        "log_ridge": torch.zeros(1, 2, 4),
    }
    assert not recall(zeros, torch.randn(1, 5, 2, 4)).any()
    assert condition_number(zeros).tolist() == [[1, 1]]


def test_what_is_no_gram_matrix_is_refused() -> None:
    broken = {
        "S": torch.zeros(1, 1, 2, 2),
        "G": -2 * torch.eye(2)[None, None],
        "log_ridge": torch.zeros(1, 1, 2),
    }
    with pytest.raises(DivergenceError, match="not the Gram matrix"):
        recall(broken, torch.zeros(1, 1, 1, 2))


@given(st.integers(1, 6), seeds)
def test_a_float32_state_of_alike_keys_is_read_however_small_the_ridge(
    width: int, seed: int
) -> None:
    keys = units(seed, 1, width).expand(5000, width) + 1e-4 * normal(seed + 1, 5000, width)
    values = normal(seed + 2, 5000, 3)
    tensors = layer(keys, values, torch.ones(5000, dtype=torch.float64), 1e-9)
    found = asked({name: tensor.float() for name, tensor in tensors.items()}, keys[:3].float())
    assert float(found.abs().max()) < float(values.abs().max())


# ---- the writer ---------------------------------------------------------------------------------


def made(dtype: str = "float64", **writer: object) -> Memory:
    llama = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    return Memory.from_config(
        {
            "backbone": {"type": "llama", "params": llama, "dtype": dtype},
            "writer": {"name": "ridge", "params": {"rank": 4, **writer}},
            "reader": {"name": "lora", "params": {"init": "random"}},
        }
    )


MEMORY = made()
TEXTS = [
    "The boat is called Ava.",
    "Lunch is at one.",
    "a",
    "Nobody knows where the key of the boat house is.",
]


def written(texts: list[str], memory: Memory = MEMORY) -> MemoryState:
    state = memory.writer.init(1)
    for text in texts:
        state = memory.write(text, state).state
    return state


@torch.no_grad()
def test_a_write_is_what_the_oracle_makes_of_the_layers_inputs() -> None:
    seen = []
    ids = MEMORY.encode(TEXTS[0]).ids
    MEMORY.backbone.forward(MEMORY.backbone.embed(ids), observe=seen.append)
    state, empty = written(TEXTS[:1]), MEMORY.writer.init(1)
    for index, activations in enumerate(seen):
        made_of = MEMORY.writer.cell(index)(activations.hidden)
        tensors = empty.layer(index)
        _, *sums = naive.scan(
            made_of.keys, made_of.keys, made_of.values, made_of.log_keep, made_of.weight,
            tensors["log_ridge"].exp(), tensors["S"], tensors["G"],
        )  # fmt: skip
        for name, expected in zip(("S", "G"), sums, strict=True):
            assert_close(state[name][:, index], expected, **EXACT)


def test_order_changes_nothing() -> None:
    first, *others = (written(list(order)) for order in itertools.permutations(TEXTS))
    for other in others:
        for name in first.tensors:
            assert_close(other[name], first[name], **EXACT)


@given(st.integers(0, len(TEXTS) - 1))
def test_a_text_that_is_forgotten_was_never_read(number: int) -> None:
    state, text = written(TEXTS), TEXTS[number]
    never = written([other for other in TEXTS if other != text])
    done = MEMORY.forget(text, state)
    for name in never.tensors:
        assert_close(done.state[name], never[name], atol=1e-12, rtol=1e-12)
    query = MEMORY.encode("Where is the key?", raw=True)
    condition = float(done.trace["condition"])
    assert condition == pytest.approx(float(condition_number(never.tensors).max()), rel=1e-9)
    logits = (MEMORY.read(which, query).logits for which in (done.state, never))
    assert_close(*logits, atol=1e-12 * condition, rtol=0)


def test_merged_memories_forget_what_either_has_read() -> None:
    merged = MEMORY.writer.merge(written(TEXTS[:2]), written(TEXTS[2:]))
    for name, tensor in written(TEXTS[1:]).tensors.items():
        assert_close(MEMORY.forget(TEXTS[0], merged).state[name], tensor, **EXACT)


def test_a_text_longer_than_the_models_positions_is_forgotten_in_the_chunks_it_was_written_in() -> (
    None
):
    long = " ".join(TEXTS)
    assert int(MEMORY.encode(long).lengths) > 64
    state = MEMORY.forget(long, written([TEXTS[0], long])).state
    for name, tensor in written([TEXTS[0]]).tensors.items():
        assert_close(state[name], tensor, **EXACT)


def test_what_was_not_read_is_refused() -> None:
    for text in ("The boat is called Eva.", TEXTS[0] + TEXTS[1]):
        with pytest.raises(InputError, match=r"row\(s\) \[0\] has not read this context"):
            MEMORY.forget(text, written(TEXTS[:1]))


def test_rows_without_tokens_forget_nothing() -> None:
    contexts = [MEMORY.encode(text).ids[0].tolist() for text in TEXTS[:2]]
    state = MEMORY.write(Tokens.from_rows(contexts)).state
    left = MEMORY.forget(Tokens.from_rows([contexts[0], []]), state).state
    assert_close(left["S"][1], state["S"][1], atol=0, rtol=0)
    assert_close(left["S"][0], torch.zeros_like(left["S"][0]), **EXACT)


def test_a_float32_memory_keeps_no_more_of_it_than_rounding() -> None:
    memory = made("float32")
    left = memory.forget(TEXTS[3], written(TEXTS, memory)).state
    never = written(TEXTS[:3], memory)
    for name in ("S", "G"):
        largest = float(written(TEXTS, memory)[name].abs().max())
        assert_close(left[name], never[name], atol=2e-6 * largest, rtol=0)


def test_a_memory_without_the_capability_says_so() -> None:
    parts = {"writer": {"name": "last-tokens"}, "reader": {"name": "text"}}
    memory = Memory.from_config(parts, backbone=MEMORY.backbone)
    with pytest.raises(InputError, match="writer 'last-tokens' cannot take a text out of a memory"):
        memory.forget(TEXTS[0], memory.write(TEXTS[0]).state)


def test_the_gradient_of_a_write_flows_into_every_weight() -> None:
    memory = made().train()
    state = memory.write(TEXTS[0]).state
    memory.read(state, memory.encode(TEXTS[1], raw=True)).logits.square().sum().backward()
    for name, weight in memory.writer.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name  # noqa: PT018


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"layers": [0, 0]}, "different numbers"),
        ({"layers": [5]}, "names layer 5"),
        ({"beta_bias": float("nan")}, "beta_bias must be finite"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(**params)
