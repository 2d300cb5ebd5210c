"""Long contexts in overlapping blocks side by side, so that the cost grows with the length, not its square."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OverlappingBlocks:
    """Blocks of `window` predicted tokens, each preceded by `window // 4` tokens that are attended to, not predicted.

    Nothing precedes the first block, which predicts all of its tokens: the last of them precede the second block.

    Attributes:
        tokens: T, the length of the whole, at least 1.
        window: W, at least 1.
    """

    tokens: int
    window: int

    @property
    def overlap(self) -> int:
        """Return the number of tokens that a block, from the second on, attends to but does not predict."""
        return self.window // 4

    @property
    def count(self) -> int:
        """Return N, the number of blocks; 1 where all tokens fit into the first."""
        return 1 + max(0, -(-(self.tokens - self.overlap - self.window) // self.window))

    def cut(self, whole: Tensor) -> Tensor:
        """Cut (B, T, ...) into (B·N, overlap + W, ...), or leave it as it is for one block.

        The end of the last block repeats the last token.
        """
        if self.count == 1:
            return whole
        starts = torch.arange(self.count, device=whole.device) * self.window
        places = starts[:, None] + torch.arange(self.overlap + self.window, device=whole.device)
        return whole[:, places.clamp(max=self.tokens - 1)].flatten(0, 1)

    def join(self, blocks: Tensor) -> Tensor:
        """Join values of every token of every block (B·N, overlap + W) into one value of each token (B, T)."""
        if self.count == 1:
            return blocks
        rows = blocks.reshape(-1, self.count, blocks.shape[1])
        return torch.cat([rows[:, 0], rows[:, 1:, self.overlap :].flatten(1)], 1)[:, : self.tokens]
