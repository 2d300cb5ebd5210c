"""The oracles: regressions one token after the other, in loops a student can read."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_keep: Tensor,
    weight: Tensor,
    ridge: Tensor,
    state: Tensor,
    gram: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do `memwrite_regression.scan.scan` token by token; autograd differentiates it any number of times."""
    reads = [torch.zeros_like(values[:, :0])]
    for t in range(keys.shape[1]):
        solved = torch.linalg.solve(gram + torch.diag_embed(ridge), queries[:, t])
        reads.append(torch.einsum("bhvk,bhk->bhv", state, solved)[:, None])
        keep, key = log_keep[:, t, :, None, None].exp(), keys[:, t, :, None, :]
        weighted = weight[:, t, :, None] * values[:, t], weight[:, t, :, None] * keys[:, t]
        state = keep * state + weighted[0][..., None] * key
        gram = keep * gram + weighted[1][..., None] * key
    return torch.cat(reads, 1), state, gram


def recursive_least_squares(
    keys: Tensor, values: Tensor, weight: Tensor, ridge: float, keep: float = 1.0
) -> Tensor:
    """Return W (Dv, Dk) after N pairs, without any G (Plackett 1950).

    From W = 0 and P = I / λ, for each pair: u = P k, g = u / (γ/β + k·u), W += (v − W k) gᵀ, P = (P − g uᵀ) / γ. That is
    ridge regression whose λ fades as the pairs do, to λ γᴺ.

    Args:
        keys: (N, Dk).
        values: (N, Dv).
        weight: β (N), positive.
        ridge: λ.
        keep: γ.
    """
    solution = values.new_zeros(values.shape[1], keys.shape[1])
    inverse = torch.eye(keys.shape[1], dtype=keys.dtype) / ridge
    for key, value, beta in zip(keys, values, weight, strict=True):
        u = inverse @ key
        gain = u / (keep / beta + key @ u)
        solution = solution + torch.outer(value - solution @ key, gain)
        inverse = (inverse - torch.outer(gain, u)) / keep
    return solution
