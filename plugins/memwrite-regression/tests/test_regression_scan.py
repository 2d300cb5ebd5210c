"""The scan of a regression that is read while it is written: every way to compute it against the oracle, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_regression import naive
from memwrite_regression import scan as scanning
from memwrite_regression.kind import recall
from memwrite_regression.scan import Solver, scan
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from memwrite.errors import DivergenceError

NAMES = ("queries", "keys", "values", "log_keep", "weight", "ridge", "state", "gram")
CLOSE = {"atol": 1e-10, "rtol": 1e-10}
#: Gates that may be open, shut, or anything.
ADVERSARIAL = [0.0, -1e-9, -0.5, -40.0, -1e4, -torch.inf]


def drawn(
    seed: int, batch: int = 2, length: int = 9, heads: int = 2, rows: int = 3, width: int = 4
) -> dict[str, Tensor]:
    """Inputs of a scan that goes on from five pairs; gates of some tokens are adversarial."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    gates = torch.randint(2 * len(ADVERSARIAL), (batch, length, heads), generator=random)
    chosen = torch.tensor([*ADVERSARIAL, *ADVERSARIAL], dtype=torch.float64)[gates]
    log_keep = torch.where(
        gates < len(ADVERSARIAL), chosen, F.logsigmoid(normal(batch, length, heads))
    )
    weight = normal(batch, length, heads).sigmoid() * (gates % 3 > 0)
    earlier = F.normalize(normal(batch, 5, heads, width), dim=-1)
    return {
        "queries": normal(batch, length, heads, width),
        "keys": F.normalize(normal(batch, length, heads, width), dim=-1),
        "values": normal(batch, length, heads, rows),
        "log_keep": log_keep,
        "weight": weight,
        "ridge": normal(batch, heads, width).exp(),
        "state": torch.einsum("bthv,bthk->bhvk", normal(batch, 5, heads, rows), earlier),
        "gram": torch.einsum("bthj,bthk->bhjk", earlier, earlier),
    }  # fmt: skip


def outputs(function: Any, inputs: dict[str, Tensor], *more: Any) -> tuple[Tensor, ...]:
    done: tuple[Tensor, ...] = function(*(inputs[name] for name in NAMES), *more)
    return done


def gradients(function: Any, inputs: dict[str, Tensor], *more: Any) -> list[Tensor]:
    """Of a fixed mixture of all outputs, by every input."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    random = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in outputs(function, leaves, *more):
        if tensor.shape == inputs["gram"].shape:
            tensor = (tensor + tensor.mT) / 2  # the oracle's G need not be symmetric
        total = (
            total
            + (tensor * torch.randn(tensor.shape, generator=random, dtype=torch.float64)).sum()
        )
    found = list(torch.autograd.grad(total, list(leaves.values())))
    found[-1] = (found[-1] + found[-1].mT) / 2
    return found


lengths, seeds, sizes = st.integers(1, 40), st.integers(0, 999), st.integers(1, 5)
solvers = st.sampled_from([Solver(), Solver(iterations=8)])


@given(seeds, lengths, sizes, sizes, st.integers(1, 2), solvers)
def test_it_is_the_oracle(
    seed: int, length: int, rows: int, width: int, heads: int, solver: Solver
) -> None:
    inputs = drawn(seed, length=length, rows=rows, width=width, heads=heads)
    for found, expected in zip(
        outputs(scan, inputs, solver), outputs(naive.scan, inputs), strict=True
    ):
        assert_close(found, expected, **CLOSE)


@given(seeds, st.integers(1, 20), sizes, sizes, solvers)
def test_its_gradients_are_the_oracles(
    seed: int, length: int, rows: int, width: int, solver: Solver
) -> None:
    inputs = drawn(seed, length=length, rows=rows, width=width)
    found, expected = gradients(scan, inputs, solver), gradients(naive.scan, inputs)
    for name, one, other in zip(NAMES, found, expected, strict=True):
        assert_close(
            one, other, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_gradients_of_gradients_are_right() -> None:
    inputs = [tensor.requires_grad_() for tensor in drawn(0, 1, 3, 1, 2, 2).values()]
    assert torch.autograd.gradgradcheck(scan, inputs)


@given(seeds, st.integers(2, 40), st.data(), solvers)
def test_it_may_be_cut_anywhere(
    seed: int, length: int, data: st.DataObject, solver: Solver
) -> None:
    inputs = drawn(seed, length=length)
    cut = data.draw(st.integers(1, length - 1))
    tokens = NAMES[:5]
    first = scan(*(inputs[n][:, :cut] if n in tokens else inputs[n] for n in NAMES), solver)
    later = {n: inputs[n][:, cut:] for n in tokens} | {"ridge": inputs["ridge"]}
    second = scan(**later, state=first[1], gram=first[2], solver=solver)
    whole = outputs(scan, inputs, solver)
    assert_close(torch.cat([first[0], second[0]], 1), whole[0], **CLOSE)
    for found, expected in zip(second[1:], whole[1:], strict=True):
        assert_close(found, expected, **CLOSE)


def test_long_texts_are_scanned_in_segments_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = drawn(3, length=100)
    whole, slopes = outputs(scan, inputs), gradients(scan, inputs)
    monkeypatch.setattr(scanning, "SEGMENT", 37)
    monkeypatch.setattr(scanning, "AT_ONCE", 1)
    for found, expected in zip(outputs(scan, inputs), whole, strict=True):
        assert_close(found, expected, **CLOSE)
    for found, expected in zip(gradients(scan, inputs), slopes, strict=True):
        assert_close(found, expected, **CLOSE)


@given(seeds, st.integers(0, 20))
def test_a_text_that_nobody_reads_is_written_alike(seed: int, length: int) -> None:
    inputs = drawn(seed, length=length)
    reads, *found = scan(**{**inputs, "queries": None})
    assert reads.shape == (2, 0, 2, 3)
    for one, other in zip(found, outputs(scan, inputs)[1:], strict=True):
        assert_close(one, other, **CLOSE)


def test_a_token_reads_what_was_known_before_it() -> None:
    inputs = drawn(5)
    at_rest = {"S": inputs["state"], "G": inputs["gram"], "log_ridge": inputs["ridge"].log()}
    first = recall(at_rest, inputs["queries"][:, :1])
    assert_close(outputs(scan, inputs)[0][:, :1], first, **CLOSE)


@given(seeds)
def test_a_token_of_no_weight_changes_nothing(seed: int) -> None:
    inputs = drawn(seed)
    for name in ("weight", "log_keep"):
        inputs[name] = torch.zeros_like(inputs[name])
    _, state, gram = outputs(scan, inputs)
    assert torch.equal(state, inputs["state"])
    assert_close(gram, inputs["gram"], atol=1e-15, rtol=0)


@given(seeds, solvers)
def test_float32_is_computed_in_float64(seed: int, solver: Solver) -> None:
    inputs = {name: tensor.float() for name, tensor in drawn(seed, length=40).items()}
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    for found, expected in zip(
        outputs(scan, inputs, solver), outputs(naive.scan, wide), strict=True
    ):
        assert found.dtype == torch.float32
        assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


def test_numbers_that_are_not_finite_are_refused() -> None:
    inputs = drawn(0)
    inputs["keys"][0, 3] = torch.nan
    with pytest.raises(DivergenceError, match="or not finite"):
        outputs(scan, inputs)
