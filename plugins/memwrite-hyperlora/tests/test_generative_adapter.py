"""Generative Adapter's writer and reader: sums of outer products, and the weights that they stand for."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hyper_memories import TEXTS, adapter, asked, bare, written
from hypothesis import given
from hypothesis import strategies as st
from memwrite_hyperlora import naive
from memwrite_hyperlora.normalize import normalized
from torch import Tensor
from torch.testing import assert_close

from memwrite import Memory, Tokens
from memwrite.errors import ContractViolation, InputError

EXACT = {"atol": 1e-12, "rtol": 1e-10}
ALL = ["q", "k", "v", "o", "gate", "up", "down"]
SMALL = {"rank": 3, "key_width": 5, "window": 8}
MEMORY = adapter({**SMALL, "heads": 2}, {"projections": ["o", "down"]})


@torch.no_grad()
def received(memory: Memory, ids: Tensor) -> list[Tensor]:
    """What each layer of the model receives, by transformers' own count."""
    model: Any = memory.model
    return list(model(ids, output_hidden_states=True).hidden_states[:-1])


def cut(ids: Tensor) -> tuple[Tensor, ...]:
    """Windows of at most eight tokens, as few and as equal as can be."""
    return ids.split(math.ceil(ids.shape[1] / math.ceil(ids.shape[1] / 8)), 1)


@torch.no_grad()
def test_a_write_is_what_the_loops_make_of_each_window_by_itself() -> None:
    ids = MEMORY.encode(TEXTS[3]).ids
    state, writer = written(MEMORY, [TEXTS[3]]), MEMORY.writer
    assert ids.shape[1] > 2 * 8
    windows = [received(MEMORY, window) for window in cut(ids)]
    for layer, head in itertools.product(range(2), range(2)):
        expected = sum(
            naive.outer_products(
                hidden[layer][0], writer.norm[layer, head], writer.keys[layer, head], writer.values[layer, head]
            )
            for hidden in windows
        )  # fmt: skip
        assert_close(state["S"][0, layer, head], expected, **EXACT)


def test_two_documents_are_the_sum_of_each_in_any_order() -> None:
    whole = written(MEMORY, TEXTS)
    parts = sum(written(MEMORY, [text])["S"] for text in TEXTS)
    assert_close(whole["S"], parts, **EXACT)
    for order in itertools.permutations(TEXTS):
        assert_close(asked(MEMORY, written(MEMORY, list(order))), asked(MEMORY, whole), **EXACT)


def test_windows_written_one_by_one_are_the_context_written_whole() -> None:
    ids = MEMORY.encode(TEXTS[3]).ids
    state = MEMORY.writer.init(1)
    for window in cut(ids):
        state = MEMORY.write(Tokens.from_rows(window.tolist()), state).state
    assert_close(state["S"], written(MEMORY, [TEXTS[3]])["S"], **EXACT)


@given(st.integers(0, len(TEXTS) - 1))
def test_a_text_that_is_forgotten_was_never_read(number: int) -> None:
    never = written(MEMORY, [text for n, text in enumerate(TEXTS) if n != number])
    found = MEMORY.forget(TEXTS[number], written(MEMORY, TEXTS)).state
    assert_close(found["S"], never["S"], **EXACT)


def test_merged_memories_have_read_what_both_have_read() -> None:
    merged = MEMORY.writer.merge(written(MEMORY, TEXTS[:2]), written(MEMORY, TEXTS[2:]))
    assert_close(merged["S"], written(MEMORY, TEXTS)["S"], **EXACT)


def test_an_empty_memory_forgets_nothing() -> None:
    with pytest.raises(InputError, match=r"row\(s\) \[0\] has read nothing"):
        MEMORY.forget(TEXTS[0], MEMORY.writer.init(1))


def change(memory: Memory, row: int, state: Any, norm: str, rank: int) -> None:
    """Put what one row's memory stands for into the model's own weights."""
    reader = memory.reader
    for layer, maps in enumerate(reader.layers.values()):
        for head, name in enumerate(maps.A):
            weight = memory.backbone.projection(layer, name)
            delta = naive.adapter_weight(
                state["S"][row, layer, head].double(), maps.A[name].double(), maps.B[name].double(), 64, norm, rank
            )  # fmt: skip
            weight.data.add_(delta.to(weight.dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("norm", "rank"), [("frobenius", 9), ("spectral", 9), ("svd", 2)])
@torch.no_grad()
def test_the_model_with_the_weights_merged_into_it_says_the_same(
    norm: str, rank: int, dtype: str
) -> None:
    def memory() -> Memory:
        reading = {"projections": ALL, "norm": norm, "svd_rank": rank}
        return adapter({**SMALL, "heads": 7}, reading, dtype=dtype, attention="sdpa", noise=0.1)

    apart, merged = memory(), memory()
    state = written(apart, TEXTS)
    change(merged, 0, state, norm, rank)
    assert float((asked(apart, state) - bare(apart)).abs().max()) > 0.01
    error = 1e-10 if dtype == "float64" else 1e-5
    assert_close(asked(apart, state), bare(merged), atol=error, rtol=error)


def test_every_row_of_a_batch_is_corrected_by_its_own_memory() -> None:
    texts = [MEMORY.encode(text).ids[0].tolist() for text in TEXTS]
    state = MEMORY.write(Tokens.from_rows(texts)).state
    queries = Tokens.from_rows([MEMORY.encode(text, raw=True).ids[0].tolist() for text in TEXTS])
    with torch.no_grad():
        logits = MEMORY.read(state, queries).logits
    for row, text in enumerate(TEXTS):
        alone = written(MEMORY, [text])
        assert_close(state["S"][row : row + 1], alone["S"], **EXACT)
        single = asked(MEMORY, alone, text)
        assert_close(logits[row : row + 1, : single.shape[1]], single, **EXACT)


def test_a_correction_has_no_more_rank_than_was_declared() -> None:
    state = written(MEMORY, TEXTS)
    maps = MEMORY.reader.layers["0"]
    weight = naive.adapter_weight(state["S"][0, 0, 0], maps.A["o"], maps.B["o"], 64, "frobenius", 9)
    assert weight.shape == (32, 32)
    assert int(torch.linalg.matrix_rank(weight)) == 3


def test_an_untrained_memory_and_an_empty_one_change_nothing() -> None:
    untrained = adapter(SMALL, {}, noise=0)
    assert torch.equal(asked(untrained, written(untrained, TEXTS)), bare(untrained))
    for norm in ("frobenius", "spectral", "svd"):
        memory = adapter(SMALL, {"norm": norm})
        assert torch.equal(asked(memory, memory.writer.init(1)), bare(memory))


# ---- normalisation ------------------------------------------------------------------------------


def matrix(seed: int, rows: int, columns: int, rank: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(size, rank, generator=random, dtype=torch.float64) for size in (rows, columns)
    )
    return left @ right.mT


sizes = st.integers(1, 6)


@given(st.integers(0, 999), sizes, sizes, sizes, sizes)
def test_svd_sets_the_largest_singular_values_to_1_and_no_zeros(
    seed: int, rows: int, columns: int, rank: int, kept: int
) -> None:
    given_ = matrix(seed, rows, columns, rank)
    found = normalized(given_[None], "svd", kept)[0]
    units = min(rows, columns, rank, kept)
    expected = torch.zeros(min(rows, columns), dtype=torch.float64)
    expected[:units] = 1
    assert_close(torch.linalg.svdvals(found), expected, atol=1e-9, rtol=0)
    # The singular vectors are its own.
    assert_close(
        torch.linalg.svdvals(found.mT @ given_)[:units], torch.linalg.svdvals(given_)[:units]
    )


@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 4))
def test_the_slope_of_svd_is_that_of_finite_differences(seed: int, rows: int, columns: int) -> None:
    start = matrix(seed, rows, columns, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: normalized(m, "svd", 2), start, atol=1e-3, rtol=1e-3)


def test_the_slope_of_svd_is_finite_where_singular_values_are_alike() -> None:
    start = torch.eye(3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: normalized(m, "svd", 3), start)


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_a_norm_does_not_depend_on_how_much_was_written(norm: str) -> None:
    given_ = matrix(0, 4, 3, 3)
    assert_close(normalized(100 * given_, norm, 1), normalized(given_, norm, 1), atol=1e-6, rtol=0)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "reading", "said"),
    [
        ({"rank": 0}, {}, "rank must be at least 1"),
        ({"window": 0}, {}, "window must be at least 1"),
        ({"layers": [0, 0]}, {}, "different numbers"),
        ({"layers": [5]}, {}, "names layer 5"),
        ({}, {"norm": "svds"}, "svd"),
        ({}, {"projections": ["x"]}, "projections = 'x'"),
        ({}, {"projections": []}, "at least one"),
        ({}, {"alpha": 0}, "alpha must be positive"),
    ],
)
def test_bad_parameters_are_refused(params: Any, reading: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adapter(params, reading)


def test_a_projection_without_a_head_of_the_state_is_refused() -> None:
    with pytest.raises(ContractViolation, match="have 1 heads, but 2 projections"):
        adapter({}, {"projections": ["o", "q"]})


def test_a_model_without_such_a_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="no projection 'gate'"):
        Memory.from_config(
            {
                "backbone": {"type": "gpt2", "params": {"n_embd": 32, "n_layer": 1, "n_head": 2}},
                "writer": {"name": "generative-adapter", "params": SMALL},
                "reader": {"name": "generative-adapter", "params": {"projections": ["gate"]}},
            }
        )


def test_the_gradient_of_a_memory_flows_into_every_weight() -> None:
    memory = adapter({**SMALL, "heads": 2}, {"projections": ["o", "down"], "norm": "svd"}).train()
    state = memory.write(TEXTS[3]).state
    memory.read(state, memory.encode(TEXTS[1], raw=True)).logits.square().sum().backward()
    for name, weight in (*memory.writer.named_parameters(), *memory.reader.named_parameters()):
        assert weight.grad is not None, name
        assert weight.grad.any(), name
