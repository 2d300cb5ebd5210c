"""The oracles: one token after the other, in loops a student can read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memwrite.modules.positions import moved
from memwrite.protocols import Backbone


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


def orthogonal(
    backbone: Backbone, base: Tensor, contexts: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Return the slots of LAVO, keys and values (L, Hkv, r, Dh), after these contexts, one token and direction at a time.

    Args:
        backbone: reads each context by itself.
        base: directions (r, Dh).
        contexts: token ids.
    """
    info = backbone.info
    slots = [torch.zeros(info.layers, info.kv_heads, *base.shape, dtype=base.dtype) for _ in "kv"]
    count = sum(map(len, contexts))
    for ids in contexts:
        embedded = backbone.embed(torch.tensor([ids], dtype=torch.int64))
        cache = backbone.forward(embedded, use_cache=True).key_values
        assert cache is not None
        for place in range(len(ids)):
            key, value = cache.keys[..., place, :][..., None, :], cache.values[0, :, :, place]
            key = moved(backbone, key, torch.tensor([[-place]]))[0, :, :, 0]
            for number, direction in enumerate(base):
                for slot, vector in zip(slots, (key, value), strict=True):
                    slot[:, :, number] += (vector @ direction)[..., None] * direction / count
    return slots[0], slots[1]
