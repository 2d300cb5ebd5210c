"""What is written of hidden states: every rule, segment, repetition and trace against a plain loop, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_delta.segments import segment_writes
from memwrite_specs.testing import MODELS
from torch import Tensor
from torch.testing import assert_close

from memwrite import Memory
from memwrite.protocols import LayerInput, ScanOutput

EXACT = {"atol": 1e-12, "rtol": 1e-12}
pytestmark = pytest.mark.filterwarnings("ignore:writer '")


@cache
def writer(name: str, **params: Any) -> Any:
    """With gates that differ from token to token, and parameters that depend on `name` and nothing else."""
    config = {
        "backbone": {**MODELS["gpt2"], "dtype": "float64"},
        "writer": {"name": name, "params": {"rank": 3, "value_width": 2, "heads": 2, **params}},
        "reader": {"name": "lora"},
    }
    built = Memory.from_config(config).writer
    random = torch.Generator().manual_seed(0)
    for _, parameter in sorted(built.cells["1"].named_parameters()):
        parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64) / 3
    return built


def scanned(
    built: Any, hidden: Tensor, queries: Tensor, state: Tensor, **options: Any
) -> ScanOutput:
    given = {"mask": torch.ones(hidden.shape[:2], dtype=torch.bool), "segments": None, **options}
    step = LayerInput(1, hidden, given["mask"], given["segments"], queries)
    found: ScanOutput = built.scan(step, {"S": state}, write=True)
    return found


def drawn(seed: int, batch: int = 2, length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, queries and a state."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((batch, length, 32), (batch, length, 2, 3), (batch, 2, 2, 3))
    hidden, queries, state = (torch.randn(s, generator=random, dtype=torch.float64) for s in shapes)
    return hidden, queries, state


seeds = st.integers(0, 999)

# ---- rules -------------------------------------------------------------------------------------

Step = Callable[[dict[str, Tensor], Tensor, int, Tensor], Tensor]


def part(weight: Tensor, head: int) -> Tensor:
    """The rows of a map (2·n, …) that belong to one of two heads."""
    return weight.view(2, -1, *weight.shape[1:])[head]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)


def hebbian(p: dict[str, Tensor], s: Tensor, head: int, x: Tensor) -> Tensor:
    """Ba et al. 2016, equation 1, with λ = 0.8 and η = 0.3."""
    k, v = part(p["key.weight"], head) @ x, part(p["value.weight"], head) @ x
    return 0.8 * s + 0.3 * torch.outer(v, k / k.norm())


def gated_delta(p: dict[str, Tensor], s: Tensor, head: int, x: Tensor) -> Tensor:
    """Yang et al. 2024, equation 10; α as in Mamba 2, keys and values through SiLU, without the convolution."""
    k, v = silu(part(p["key.weight"], head) @ x), silu(part(p["value.weight"], head) @ x)
    k = k / k.norm()
    step = (1 + (p["alpha.weight"][head] @ x + p["step_bias"][head]).exp()).log()
    alpha, beta = (-p["log_rate"][head].exp() * step).exp(), sigmoid(p["beta.weight"][head] @ x)
    identity = torch.eye(3, dtype=torch.float64)
    return s @ (alpha * (identity - beta * torch.outer(k, k))) + beta * torch.outer(v, k)


def delta(forgetting: str, update: str, most_keep: float = 1.0) -> Step:
    """δ-mem (arXiv 2605.12357), with a gate for every row."""

    def step(p: dict[str, Tensor], s: Tensor, head: int, x: Tensor) -> Tensor:
        k, v = (part(p["key.weight"], head) @ x).tanh(), part(p["value.weight"], head) @ x
        k = k / k.norm()
        beta = sigmoid(part(p["beta.weight"], head) @ x + part(p["beta.bias"], head))
        kept = torch.ones_like(beta)
        if forgetting == "coupled":
            kept = 1 - beta
        elif forgetting == "free":
            score = part(p["keep.weight"], head) @ x + part(p["keep.bias"], head)
            kept = most_keep * sigmoid(score)
        erased = beta * kept if update == "lambda_outside" else beta
        return kept.diag() @ s - erased.diag() @ torch.outer(s @ k, k) + torch.outer(beta * v, k)

    return step


RULES: dict[str, tuple[str, dict[str, Any], Step]] = {
    "hebbian": ("hebbian", {"keep": 0.8, "learning_rate": 0.3}, hebbian),
    "gated-delta": ("gated-delta", {}, gated_delta),
    **{
        f"{forgetting}, {update}": (
            "delta",
            {"forgetting": forgetting, "update": update},
            delta(forgetting, update),
        )
        for forgetting in ("coupled", "free", "none")
        for update in ("standard", "lambda_outside")
    },
    "most kept": (
        "delta",
        {"forgetting": "free", "update": "lambda_outside", "most_keep": 0.7},
        delta("free", "lambda_outside", 0.7),
    ),
}
each = pytest.mark.parametrize("name", RULES)


@each
@given(seed=seeds)
def test_rules_as_published(name: str, seed: int) -> None:
    """Token after token, head after head; what a token reads is S q from before its own write."""
    plugin, params, step = RULES[name]
    built = writer(plugin, **params)
    hidden, queries, state = drawn(seed)
    found = scanned(built, hidden, queries, state)
    weights = {n: p.detach() for n, p in built.cells["1"].named_parameters()}
    assert found.reads is not None
    for row in range(2):
        for head in range(2):
            s = state[row, head]
            for t, x in enumerate(hidden[row]):
                assert_close(found.reads[row, t, head], s @ queries[row, t, head], **EXACT)
                s = step(weights, s, head, x)
            assert_close(found.state["S"][row, head], s, **EXACT)


# ---- one write of every token, many, or one of many tokens ---------------------------------------


@each
@given(seed=seeds)
def test_several_writes_of_a_token(name: str, seed: int) -> None:
    """writes=3 is every token three times over, read before the first."""
    plugin, params, _ = RULES[name]
    hidden, queries, state = drawn(seed)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    often = scanned(writer(plugin, **params, writes=3), hidden, queries, state, mask=mask)
    copies = (x.repeat_interleave(3, 1) for x in (hidden, queries))
    once = scanned(writer(plugin, **params), *copies, state, mask=mask.repeat_interleave(3, 1))
    assert often.reads is not None
    assert once.reads is not None
    assert_close(often.state["S"], once.state["S"], **EXACT)
    assert_close(often.reads, once.reads[:, ::3], **EXACT)


numbers = st.lists(st.integers(-1, 3), min_size=9, max_size=9)
masks = st.lists(st.booleans(), min_size=9, max_size=9)
rows_of = {"segments": st.lists(numbers, min_size=2, max_size=2),
           "mask": st.lists(masks, min_size=2, max_size=2)}  # fmt: skip


def ends(segments: list[int], mask: list[bool]) -> dict[int, list[int]]:
    """By the place of its last real token, all real tokens of a segment."""
    places: dict[int, list[int]] = {}
    for t, number in enumerate(segments):
        if mask[t] and number >= 0:
            places.setdefault(number, []).append(t)
    return {tokens[-1]: tokens for tokens in places.values()}


@given(seed=seeds, **rows_of)
def test_means_of_segments(seed: int, segments: list[list[int]], mask: list[list[bool]]) -> None:
    """In the place of the last token, however segments interleave; padding counts for nothing, whatever it holds."""
    hidden = drawn(seed)[0]
    real = torch.tensor(mask)
    hidden = hidden.masked_fill(~real[..., None], torch.nan)
    means, found = segment_writes(hidden, torch.tensor(segments), real)
    for row in range(2):
        expected = ends(segments[row], mask[row])
        assert found[row].nonzero().flatten().tolist() == sorted(expected)
        for t, tokens in expected.items():
            assert_close(means[row, t], sum(hidden[row, i] for i in tokens) / len(tokens), **EXACT)


@pytest.mark.parametrize("granularity", ["message", "sentence"])
@pytest.mark.parametrize("reads", ["earlier", "before"])
@given(seed=seeds, **rows_of)
def test_writes_of_segments(
    granularity: str, reads: str, seed: int, segments: list[list[int]], mask: list[list[bool]]
) -> None:
    """A segment's mean is written once, behind its last token. Tokens read what was written before them, or, with
    reads=before, what the state held before all of them. Padding may hold anything."""
    built, single = writer("delta", granularity=granularity, reads=reads), writer("delta")
    hidden, queries, state = drawn(seed)
    given = {"mask": torch.tensor(mask), "segments": torch.tensor(segments)}
    padded = hidden.masked_fill(~given["mask"][..., None], torch.nan)
    found = scanned(built, padded, queries, state, **given)
    assert found.reads is not None
    for row in range(2):
        own = state[row : row + 1]
        places = ends(segments[row], mask[row])
        for t in range(9):
            asked = queries[row : row + 1, t : t + 1]
            seen = own if reads == "earlier" else state[row : row + 1]
            expected = torch.einsum("bhvk,bthk->bthv", seen, asked)[0, 0]
            assert_close(found.reads[row, t], expected, **EXACT)
            if t in places:
                mean = hidden[row, places[t]].mean(0)[None, None]
                own = scanned(single, mean, asked, own).state["S"]
        assert_close(found.state["S"][row], own[0], **EXACT)


def test_what_is_written_by_tokens() -> None:
    """Text without segments, and text with segments where tokens are written."""
    inputs, segments = drawn(0), torch.zeros(2, 9, dtype=torch.int64)
    expected = scanned(writer("delta"), *inputs)
    assert expected.reads is not None
    for found in (
        scanned(writer("delta", granularity="message", reads="before"), *inputs),
        scanned(writer("delta"), *inputs, segments=segments),
    ):
        assert found.reads is not None
        assert torch.equal(found.reads, expected.reads)
        assert torch.equal(found.state["S"], expected.state["S"])


def test_a_scan_that_does_not_write() -> None:
    hidden, queries, state = drawn(0)
    mask = torch.ones(2, 9, dtype=torch.bool)
    found = writer("delta").scan(
        LayerInput(1, hidden, mask, None, queries), {"S": state}, write=False
    )
    assert_close(found.reads, torch.einsum("bhvk,bthk->bthv", state, queries), **EXACT)
    assert found.state["S"] is state
    unread = writer("delta").scan(LayerInput(1, hidden, mask), {"S": state}, write=True)
    assert unread.reads is None


# ---- traces and losses ---------------------------------------------------------------------------


@each
def test_traces(name: str) -> None:
    """The norm of all heads, and ln 2 over the mean of −ln λ, of the real tokens' gates; ∞ where nothing is forgotten."""
    plugin, params, _ = RULES[name]
    built = writer(plugin, **params)
    hidden, queries, state = drawn(0, batch=3)
    lengths = [9, 4, 0]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    found = scanned(built, hidden, queries, state, mask=mask)
    trace = found.trace()
    log_keep = built.cells["1"](hidden).log_keep
    for row, length in enumerate(lengths):
        norm = found.state["S"][row].square().sum().sqrt()
        assert_close(trace["norm"][row], norm, **EXACT)
        mean = -log_keep[row, :length].mean().item() if length else 0.0
        expected = math.log(2) / mean if mean else math.inf
        assert trace["half_life"][row].item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(found.state["S"][2], state[2])
    assert not any(tensor.requires_grad for tensor in trace.values())
    if plugin == "hebbian":
        assert trace["half_life"][0].item() == pytest.approx(math.log(0.5) / math.log(0.8))


def test_loss_of_gates() -> None:
    """gate_weight · (mean β − gate_target)², of the real tokens' gates; 0 where there are none."""
    built = writer("delta", gate_weight=0.3, gate_target=0.05)
    hidden, queries, state = drawn(0, batch=3)
    mask = torch.arange(9) < torch.tensor([[9], [4], [0]])
    found = scanned(built, hidden, queries, state, mask=mask).losses["gates"]
    beta = built.cells["1"](hidden).write
    means = torch.stack([beta[0].mean(), beta[1, :4].mean()])
    assert_close(found[:2], 0.3 * (means - 0.05) ** 2, **EXACT)
    assert found[2] == 0
    assert scanned(writer("delta"), hidden, queries, state).losses == {}
