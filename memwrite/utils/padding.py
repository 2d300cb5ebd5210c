"""Rows of different lengths in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def right_padded(
    rows: Sequence[Sequence[int]], device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """Return B rows of whole numbers as (B, T) int64, and the mask (B, T) of those that are no padding."""
    width = max(map(len, rows), default=0)
    padded = [[*row, *[0] * (width - len(row))] for row in rows]
    numbers = torch.tensor(padded, dtype=torch.int64, device=device).reshape(len(rows), width)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return numbers, torch.arange(width, device=device) < lengths[:, None]


def real_first(mask: Tensor) -> Tensor:
    """Return the order (..., T') of the columns of each row that puts real ones first, T' of the longest row.

    Args:
        mask: (..., T) bool, True where a column is real.
    """
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return order[..., : int(mask.sum(-1).max()) if mask.numel() else 0]
