"""Learned slots, and control tokens around them, for writers of `prefix` states."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def learned(count: int, width: int, std: float, dtype: torch.dtype) -> nn.Parameter:
    """Make `count` learned embeddings (count, width), drawn from N(0, std²)."""
    return nn.Parameter(torch.randn(count, width, dtype=dtype) * std)


class ControlTokens(nn.Module):
    """Learned embeddings around the memory: one pair while it is written, another while it is read.

    GradMem (arXiv 2603.13875) and RMT: `[write_start][M][write_end]` and `[read_start][M][read_end]`.

    Args:
        count: embeddings on each side; 0 for none.
        width: D.
        std: standard deviation of their initial values.
        dtype: of the parameters.
    """

    def __init__(self, count: int, width: int, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.write_start = learned(count, width, std, dtype)
        self.write_end = learned(count, width, std, dtype)
        self.read_start = learned(count, width, std, dtype)
        self.read_end = learned(count, width, std, dtype)

    def around_write(self, memory: Tensor) -> Tensor:
        """Surround the memory as it is written with: (B, M, D) -> (B, M + 2·count, D)."""
        return _around(self.write_start, memory, self.write_end)

    def around_read(self, memory: Tensor) -> Tensor:
        """Surround the memory as it is read: (B, M, D) -> (B, M + 2·count, D)."""
        return _around(self.read_start, memory, self.read_end)


def _around(before: Tensor, memory: Tensor, after: Tensor) -> Tensor:
    if not before.shape[0]:
        return memory
    rows = memory.shape[0]
    return torch.cat([before.expand(rows, -1, -1), memory, after.expand(rows, -1, -1)], 1)
