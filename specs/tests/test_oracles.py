"""The oracles, by their definitions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_specs.oracles import delta, hebbian, ridge
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

Rule = Callable[[Tensor, Tensor], Tensor]
RULES: list[Rule] = [hebbian, delta, ridge]
each_rule = pytest.mark.parametrize("rule", RULES)
seeds = st.integers(0, 2**32)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_rule
@given(width=st.integers(1, 8), data=st.data(), seed=seeds)
def test_orthonormal_keys_are_recalled_exactly(
    rule: Rule, width: int, data: st.DataObject, seed: int
) -> None:
    pairs = data.draw(st.integers(1, width))
    keys = torch.linalg.qr(draw(3, width, width, seed=seed)).Q[:, :pairs]
    values = draw(3, pairs, 5, seed=seed + 1)
    assert_close(keys @ rule(keys, values).mT, values, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 9), st.floats(0, 1.9), seeds)
def test_delta_is_its_sum_over_pairs(pairs: int, rate: float, seed: int) -> None:
    """S = Σⱼ rate·vⱼ kⱼᵀ Π_{i>j} (1 − rate·kᵢ kᵢᵀ), each row of the batch by itself."""
    keys = F.normalize(draw(2, pairs, 4, seed=seed), dim=-1)
    values = draw(2, pairs, 3, seed=seed + 1)
    for found, k, v in zip(delta(keys, values, rate), keys, values, strict=True):
        expected = torch.zeros(3, 4, dtype=torch.float64)
        for j in range(pairs):
            written = rate * torch.outer(v[j], k[j])
            for i in range(j + 1, pairs):
                written = written @ (torch.eye(4) - rate * torch.outer(k[i], k[i]))
            expected += written
        assert_close(found, expected)


@pytest.mark.parametrize("pairs", [3, 6, 20])
def test_ridge_of_no_strength_is_the_least_squares_solution_of_least_norm(pairs: int) -> None:
    keys, values = draw(2, pairs, 6), draw(2, pairs, 4, seed=1)
    found = ridge(keys, values, 1e-9)
    assert_close(found, (torch.linalg.pinv(keys) @ values).mT, atol=1e-5, rtol=1e-5)
    if pairs > 6:
        assert_close(found, torch.linalg.lstsq(keys, values).solution.mT, atol=1e-5, rtol=1e-5)


@given(st.floats(0.01, 10), seeds)
def test_ridge_is_the_minimum(strength: float, seed: int) -> None:
    keys, values = draw(1, 5, 4, seed=seed), draw(1, 5, 3, seed=seed + 1)
    state = ridge(keys, values, strength).requires_grad_()
    loss = (values - keys @ state.mT).square().sum() + strength * state.square().sum()
    (slope,) = torch.autograd.grad(loss, state)
    assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)
