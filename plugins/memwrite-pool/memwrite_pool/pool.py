"""A pool of hidden states: what survives a write, and where the new ones come."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.state import StateKind

POOL = StateKind(
    "pool",
    {"hidden": "L N D", "writes": "", "seed": ""},
    {"long": "L R D", "made": "L N", "long_made": "L R"},
    dtypes=dict.fromkeys(("writes", "seed", "made", "long_made"), torch.int64),
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


def renewed(count: Tensor, first: Tensor, draw: Tensor) -> Tensor:
    """Return where each slot of a pool comes from: (B, L or 1, N), a place in the pool, or N and more for a new one.

    The slots that survive come first, in their order, and the new ones behind them. As many are forgotten as there are
    new ones, each as likely as any other. A pool that is empty is filled with the new ones, over and over, and what is
    left with the last of them.

    Args:
        count: (B,), how many new ones each row has; where there are none the pool stays as it is.
        first: (B,) bool, whether the pool is empty.
        draw: (B, L or 1, N) random numbers.
    """
    slots, number = draw.shape[-1], count[:, None, None]
    place = torch.arange(slots, device=draw.device)
    survivors = _forgotten(draw, number).to(torch.uint8).argsort(dim=-1, stable=True)
    behind = place - (slots - number)
    kept = torch.where(behind < 0, survivors, slots + behind)
    some = number.clamp(min=1)
    whole = slots // some * some
    tiled = torch.where(place < whole, place % some, place - slots + some)
    return torch.where(first[:, None, None] & (number > 0), slots + tiled, kept)


def remembered(count: Tensor, first: Tensor, draw: Tensor, size: int) -> Tensor:
    """Return where each slot of a long-term memory comes from: (B, L or 1, R), a place in it, or R and more in the pool.

    What the pool forgets comes behind what is there, and what came first goes.

    Args:
        count: as for `renewed`.
        first: likewise; an empty pool forgets nothing.
        draw: likewise.
        size: R.
    """
    number = count.masked_fill(first, 0)[:, None, None]
    order = (~_forgotten(draw, number)).to(torch.uint8).argsort(dim=-1, stable=True)
    shifted = (torch.arange(size, device=draw.device) + number).expand(*order.shape[:2], -1)
    beyond = (shifted - size).clamp(0, draw.shape[-1] - 1)
    return torch.where(shifted < size, shifted, size + order.gather(-1, beyond))


def picked(tensor: Tensor, other: Tensor, index: Tensor) -> Tensor:
    """Take slots (B, L, ·, ...) of two tensors (B, L, N, ...) and (B, L, n, ...), the places in the second behind N."""
    both = torch.cat([tensor, other], 2)
    index = index.expand(-1, both.shape[1], -1)
    index = index.reshape(*index.shape, *[1] * (both.ndim - 3))
    return both.gather(2, index.expand(*index.shape[:3], *both.shape[3:]))


def _forgotten(draw: Tensor, number: Tensor) -> Tensor:
    return draw.argsort(-1).argsort(-1) < number
