"""The oracle: one token after the other, in a loop a student can read."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Do `memwrite_delta.scan.scan` by its recurrence, token by token; autograd differentiates it any number of times."""
    keep = log_keep.exp()
    reads = [torch.zeros_like(values[:, :0])]
    for t in range(keys.shape[1]):
        reads.append(_recall(state, queries[:, t])[:, None])
        update = write[:, t] * values[:, t] - erase[:, t] * _recall(state, keys[:, t])
        state = keep[:, t, :, :, None] * state + update[..., :, None] * keys[:, t, :, None, :]
    return torch.cat(reads, 1), state


def _recall(state: Tensor, key: Tensor) -> Tensor:
    """Return S k (B, H, Dv) of a state (B, H, Dv, Dk) and a key (B, H, Dk)."""
    return torch.einsum("bhvk,bhk->bhv", state, key)
