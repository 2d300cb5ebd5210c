"""Long contexts in overlapping pieces side by side, so that their cost grows with their length, not its square."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pieces:
    """Of `window` tokens each, behind a quarter as many that the piece before has: those are seen, not predicted.

    The first piece has none before it and predicts all of its tokens.

    Attributes:
        tokens: T, of the whole, at least 1.
        window: W, at least 1.
    """

    tokens: int
    window: int

    @property
    def seen(self) -> int:
        """Tokens of a piece, from the second on, that are only seen."""
        return self.window // 4

    @property
    def count(self) -> int:
        """N, pieces; 1 where all tokens fit into the first."""
        return 1 + max(0, -(-(self.tokens - self.seen - self.window) // self.window))

    def cut(self, whole: Tensor) -> Tensor:
        """(B, T, ...) -> (B·N, S + W, ...), or (B, T, ...) for one piece; the last piece's end repeats the last token."""
        if self.count == 1:
            return whole
        starts = torch.arange(self.count, device=whole.device) * self.window
        places = starts[:, None] + torch.arange(self.seen + self.window, device=whole.device)
        return whole[:, places.clamp(max=self.tokens - 1)].flatten(0, 1)

    def join(self, pieces: Tensor) -> Tensor:
        """What was found of every token of every piece (B·N, S + W), of each token once (B, T)."""
        if self.count == 1:
            return pieces
        rows = pieces.reshape(-1, self.count, pieces.shape[1])
        return torch.cat([rows[:, 0], rows[:, 1:, self.seen :].flatten(1)], 1)[:, : self.tokens]
