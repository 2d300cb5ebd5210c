"""A pool of hidden states: what survives a write, and where the new ones come."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.state import StateKind

POOL = StateKind(
    "pool",
    {"hidden": "L N D", "writes": "", "seed": ""},
    dtypes={"writes": torch.int64, "seed": torch.int64},
    summary="hidden states that stand before the text in each layer; of these each write forgets some at random",
)


def draws(seeds: Tensor, writes: Tensor, layers: int, slots: int) -> Tensor:
    """Return random numbers (B, layers, slots), each row's from its own seed and number of writes alone.

    Args:
        seeds: (B,) int64.
        writes: (B,) int64, how many there have been.
        layers: how many layers have numbers of their own.
        slots: N.
    """
    rows = []
    for seed, count in zip(seeds.tolist(), writes.tolist(), strict=True):
        # A generator takes no more than 32 bits.
        generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + count) % (1 << 32))
        rows.append(torch.rand(layers, slots, generator=generator))
    return torch.stack(rows).to(seeds.device)


def renewed(pool: Tensor, new: Tensor, count: Tensor, first: Tensor, draw: Tensor) -> Tensor:
    """Return the pool after a write: the slots that survive, in their order, and the new ones behind them.

    As many are forgotten as there are new ones, each as likely as any other. A pool that is empty is filled with the new
    ones, over and over, and what is left with the last of them.

    Args:
        pool: (B, L, N, D).
        new: (B, L, n, D), a row's new ones first.
        count: (B,), how many each row has; one that has none stays as it is.
        first: (B,) bool, whether its pool is empty.
        draw: (B, L or 1, N) random numbers.
    """
    layers, slots = pool.shape[1:3]
    number = count[:, None, None]
    place = torch.arange(slots, device=pool.device)
    rank = draw.argsort(-1).argsort(-1)
    survivors = (rank < number).to(torch.uint8).argsort(dim=-1, stable=True)
    behind = place - (slots - number)
    kept = torch.where(behind < 0, survivors, slots + behind)
    some = number.clamp(min=1)
    whole = slots // some * some
    tiled = torch.where(place < whole, place % some, place - slots + some)
    index = torch.where(first[:, None, None] & (number > 0), slots + tiled, kept)
    index = index.expand(-1, layers, -1)[..., None].expand(-1, -1, -1, pool.shape[-1])
    return torch.cat([pool, new], 2).gather(2, index)
