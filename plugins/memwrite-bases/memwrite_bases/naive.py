"""The oracle: one token after the other, in a loop a student can read."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def legs(queries: Tensor, values: Tensor, state: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Read and write as `memwrite_bases.hippo.scan`, by the equations of LegS themselves, for one row and head.

    t dc/dt = −A c + B f with A and B of the paper's theorem 2. With s = log t it is dc/ds = −A c + B f, whose step from token
    k to k + 1 is c ← E c + (I − E) A⁻¹ B f, E = exp(A log(k / (k + 1))), for an f that is constant meanwhile.

    Args:
        queries: (T, N).
        values: (T, Dv).
        state: S (Dv, N), float64.
        tokens: k, how many it stands for.

    Returns:
        The reads (T, Dv), each before its token is written, and S.
    """
    order = state.shape[1]
    a = torch.zeros(order, order, dtype=state.dtype)
    for n in range(order):
        for k in range(n + 1):
            a[n, k] = n + 1 if n == k else math.sqrt((2 * n + 1) * (2 * k + 1))
    b = torch.tensor([math.sqrt(2 * n + 1) for n in range(order)], dtype=state.dtype)
    kept = torch.linalg.solve(a, b)
    identity, reads = torch.eye(order, dtype=state.dtype), []
    for query, value in zip(queries, values, strict=True):
        reads.append(state @ query)
        step = (
            torch.linalg.matrix_exp(a * math.log(tokens / (tokens + 1)))
            if tokens
            else torch.zeros_like(a)
        )
        state = state @ step.T + torch.outer(value, (identity - step) @ kept)
        tokens += 1
    return torch.stack(reads), state
