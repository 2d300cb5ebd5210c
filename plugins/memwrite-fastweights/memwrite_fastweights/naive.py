"""The oracles: one token after the other, with gradients by autograd, in loops a student can read.

Queries, keys and values are (B, T, H, D), gates (B, T, H); all rows are of the same length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def recall(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return M(x) of a memory {"S"}, or {"W1", "W2"}, with matrices (B, H, n, m) and x (B, H, m)."""
    if "S" in weights:
        return _times(weights["S"], x)
    return _times(weights["W2"], F.gelu(_times(weights["W1"], x)))


def titans(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Tensor,
    momentum: Tensor,
    keep: Tensor,
    memory: Weights,
    surprise: Weights,
    start: Weights,
    count: int,
    chunk: int,
) -> tuple[Tensor, Weights, Weights, Weights]:
    """Write and read T tokens by Titans' rule, with θ, η and 1 − α.

    Args:
        queries: asked before each token is written.
        keys: what the memory receives.
        values: what it is to answer.
        step: θ.
        momentum: η.
        keep: 1 − α.
        memory: M.
        surprise: S.
        start: M at the start of the chunk.
        count: how many tokens of the chunk have been written.
        chunk: C.

    Returns:
        Reads (B, T, H, Dv), and the new M, S and start.
    """
    reads = [torch.zeros_like(values[:, :0])]
    for t in range(keys.shape[1]):
        if (count + t) % chunk == 0:
            start = memory
        reads.append(recall(memory, queries[:, t])[:, None])
        error = lambda m, t=t: (recall(m, keys[:, t]) - values[:, t]).square().mean(-1)  # noqa: E731
        slope = gradient(error, start)
        surprise = {
            n: _each(momentum[:, t]) * s - _each(step[:, t]) * slope[n] for n, s in surprise.items()
        }
        memory = {n: _each(keep[:, t]) * m + surprise[n] for n, m in memory.items()}
    if (count + keys.shape[1]) % chunk == 0:
        start = memory
    return torch.cat(reads, 1), memory, surprise, start


def gradient(loss: Callable[[Weights], Tensor], weights: Weights) -> Weights:
    """Return the gradients of the losses (B, H) of all memories; they can be differentiated again."""
    with torch.enable_grad():
        leaves = {
            name: x if x.requires_grad else x.detach().requires_grad_()
            for name, x in weights.items()
        }
        found = torch.autograd.grad(loss(leaves).sum(), list(leaves.values()), create_graph=True)
    return dict(zip(weights, found, strict=True))


def _times(weights: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bhmn,bhn->bhm", weights, x)


def _each(gate: Tensor) -> Tensor:
    """Shape a gate (B, H) to multiply matrices (B, H, m, n)."""
    return gate[..., None, None]
