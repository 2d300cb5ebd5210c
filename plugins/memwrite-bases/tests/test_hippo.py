"""HiPPO-LegS against its oracle, its authors' code, and the exact laws of a projection."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_bases import naive
from memwrite_bases.hippo import CHUNK, scan
from memwrite_bases.legendre import basis
from memwrite_specs.testing import MODELS
from safetensors.torch import load_file
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss

FILE = Path(__file__).parent / "data" / "legs.safetensors"
SEEDS = st.integers(0, 2**31)
ORDERS = st.sampled_from([1, 2, 3, 7, 16])


def close(found: Tensor, expected: Tensor, bar: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, atol=bar, rtol=bar)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coefficients(signal: Tensor, order: int, tokens: int = 0) -> Tensor:
    """Return S (C, N) of a signal (T, C), read behind so many zeros."""
    values = signal[None, :, None]
    start = signal.new_zeros(1, 1, signal.shape[1], order)
    mask = torch.ones(1, len(signal), dtype=torch.bool)
    return scan(None, values, mask, start, torch.tensor([tokens]))[1][0, 0]


@pytest.mark.parametrize("order", [4, 9])
def test_equals_the_authors_code(order: int) -> None:
    """With their exact step, after every number; their first comes at time 1."""
    tensors = load_file(FILE)
    signal = tensors["signal"]
    for length in range(1, len(signal) + 1):
        found = coefficients(signal[:length], order, tokens=1)
        close(found, tensors[f"coefficients.{order}"][length - 1])
    places = torch.linspace(0, 1, len(signal), dtype=torch.float64)
    close(found @ basis(order, places).mT, tensors[f"reconstruction.{order}"])


@settings(max_examples=15)
@given(SEEDS, ORDERS, st.lists(st.integers(0, 50), min_size=2, max_size=2), st.data())
def test_equals_the_oracle(seed: int, order: int, tokens: list[int], data: Any) -> None:
    """In a batch whose rows have read different numbers of tokens, across the chunks of the scan; padding is not written."""
    lengths = data.draw(st.lists(st.integers(1, 2 * CHUNK), min_size=2, max_size=2))
    longest, heads, width = max(lengths), 2, 3
    queries = drawn(seed, 2, longest, heads, order)
    values = drawn(seed + 1, 2, longest, heads, width)
    read = torch.tensor(tokens)
    start = drawn(seed + 2, 2, heads, width, order) * (read > 0)[:, None, None, None]
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    reads, state, count = scan(queries, values, mask, start, read)
    silent = scan(None, values, mask, start, read)
    assert reads is not None
    assert silent[0] is None
    close(silent[1], state)
    assert count.tolist() == silent[2].tolist() == (read + torch.tensor(lengths)).tolist()
    for row, length in enumerate(lengths):
        for head in range(heads):
            part = slice(0, length)
            expected, last = naive.legs(
                queries[row, part, head], values[row, part, head], start[row, head], tokens[row]
            )
            close(reads[row, part, head], expected, 1e-8)
            close(state[row, head], last, 1e-8)


@settings(max_examples=15)
@given(SEEDS, ORDERS, st.integers(1, 20))
def test_the_scan_is_the_projection(seed: int, order: int, length: int) -> None:
    """Token by token it comes to the integrals of the whole signal with each polynomial."""
    signal = drawn(seed, length, 2)
    state, tokens = signal.new_zeros(1, 1, 2, order), torch.tensor([0])
    for value in signal:
        one = value[None, None, None]
        _, state, tokens = scan(None, one, torch.ones(1, 1, dtype=torch.bool), state, tokens)
    inner = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    expected = sum(
        value[:, None] * basis(order, (place + inner) / length).mean(0) / length
        for place, value in enumerate(signal)
    )
    assert isinstance(expected, Tensor)
    close(state[0, 0], expected, 1e-4)
    close(state[0, 0], coefficients(signal, order))


@settings(max_examples=15)
@given(SEEDS, ORDERS, st.integers(1, 30), st.integers(2, 5))
def test_time_has_no_scale(seed: int, order: int, length: int, times: int) -> None:
    """A text read more slowly, every token several times, leaves the same coefficients (the paper's proposition 3)."""
    signal = drawn(seed, length, 2)
    slow = signal.repeat_interleave(times, 0)
    close(coefficients(slow, order), coefficients(signal, order))


@settings(max_examples=15)
@given(SEEDS, ORDERS, st.integers(1, 30))
def test_order_matters(seed: int, order: int, length: int) -> None:
    """Read backwards, coefficients of odd degree change their sign: gₙ(1 − x) = (−1)ⁿ gₙ(x)."""
    signal = drawn(seed, length, 2)
    signs = (-1.0) ** torch.arange(order, dtype=torch.float64)
    close(coefficients(signal.flip(0), order), coefficients(signal, order) * signs)


@settings(max_examples=15)
@given(SEEDS, ORDERS, st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_coefficients_are_bounded(seed: int, order: int, pieces: list[int]) -> None:
    """By Bessel's inequality: their squares add up to no more than the mean square of all that was read."""
    state, tokens, squares = torch.zeros(1, 1, 1, order).double(), torch.tensor([0]), 0.0
    for number, piece in enumerate(pieces):
        values = drawn(seed + number, 1, piece, 1, 1) * 10.0**number
        squares += float(values.square().sum())
        mask = torch.ones(1, piece, dtype=torch.bool)
        _, state, tokens = scan(None, values, mask, state, tokens)
        assert float(state.square().sum()) <= squares / int(tokens) * (1 + 1e-9)


@pytest.mark.parametrize("order", [1, 3, 6])
def test_polynomials_are_reconstructed(order: int) -> None:
    """Those of a degree below N, but for the pieces' length: twice as many tokens, a quarter of the error."""
    weights = drawn(0, order)
    places = torch.linspace(0.02, 0.98, 50, dtype=torch.float64)

    def error(length: int) -> float:
        middles = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        signal = basis(order, middles) @ weights[:, None]
        found = coefficients(signal, order)[0] @ basis(order, places).mT
        return float((found - basis(order, places) @ weights).abs().max())

    errors = [error(length) for length in (64, 128, 256)]
    if order == 1:
        assert max(errors) < 1e-12
    else:
        assert errors[-1] < 1e-2
        for coarse, fine in pairwise(errors):
            assert fine < coarse / 3.5


def test_a_long_text_in_float32_stays_exact() -> None:
    """Many pieces in float32 beside one in float64."""
    signal = drawn(0, 20_000, 1)
    state, tokens = torch.zeros(1, 1, 1, 16), torch.tensor([0])
    for part in signal.float().split(100):
        mask = torch.ones(1, len(part), dtype=torch.bool)
        _, state, tokens = scan(None, part[None, :, None], mask, state, tokens)
    close(state[0, 0].double(), coefficients(signal, 16), 1e-6)


def build(**params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS["gpt2"], "dtype": "float64", "attention": "eager"},
            "writer": {"name": "hippo", "params": {"order": 4, "value_width": 3, **params}},
            "reader": {"name": "lora", "params": {"init": "random"}},
        }
    )


def test_the_state_counts_its_tokens() -> None:
    memory = build(heads=2)
    layers = memory.backbone.info.layers
    spec = memory.writer.spec
    assert spec.floats == layers * (2 * 3 * 4 + 1)
    state = memory.write(Tokens.from_rows([[5, 6, 7], [8]])).state
    assert state["latent.tokens"].tolist() == [[3] * layers, [1] * layers]


def test_training_reaches_every_parameter() -> None:
    memory = build()
    memory.train()
    tokens = Tokens.from_rows([[5, 6, 7, 8], [9, 10]])
    training_loss(memory, Batch(tokens, tokens, tokens.ids)).loss.backward()
    for name, parameter in memory.writer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"order": 0}, "order must be at least 1"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"layers": [1, 1]}, "layers must be different numbers"),
        ({"layers": [99]}, "names layer 99"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"writer.params.*{message}"):
        build(**params)
