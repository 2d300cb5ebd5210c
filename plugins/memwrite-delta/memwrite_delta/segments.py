"""Writes of a message or a sentence at a time: the mean of its tokens, where it ends."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_writes(hidden: Tensor, segments: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Average every segment's real tokens, in the place of its last one.

    Args:
        hidden: (B, T, D).
        segments: (B, T) int64, -1 for tokens of none.
        mask: (B, T) bool, True where a token is real.

    Returns:
        (B, T, D), the means, and (B, T) bool, True where a segment ends; elsewhere the means have no meaning.
    """
    inside = mask & (segments >= 0)
    # Numbers of segments are names; in between them, one for what is outside all.
    names, numbers = torch.unique(torch.where(inside, segments, -1), return_inverse=True)
    batch, length, width = hidden.shape
    counts = hidden.new_zeros(batch, len(names))
    counts = counts.scatter_add(1, numbers, inside.to(hidden.dtype))
    index = numbers[..., None].expand(batch, length, width)
    sums = hidden.new_zeros(batch, len(names), width)
    sums = sums.scatter_add(1, index, hidden.where(inside[..., None], 0))
    means = sums / counts.clamp(min=1)[..., None]
    steps = torch.arange(length, device=hidden.device).expand(batch, length)
    ends = numbers.new_full((batch, len(names)), -1).scatter_reduce(1, numbers, steps, "amax")
    return means.gather(1, index), inside & (ends.gather(1, numbers) == steps)
