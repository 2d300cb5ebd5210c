"""What a score looks at: at one layer, the slots that are kept already and the tokens that are read now."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

#: Queries whose attention is computed at a time, so that it is never there for all of them.
BLOCK = 256


@dataclass(frozen=True)
class Candidates:
    """The S keys and values of one layer of which some are kept: M old slots first, then the T tokens of the context.

    Attributes:
        layer: number of the attention layer.
        keys: (B, Hkv, S, Dh) after norm and rotary embedding.
        values: (B, Hkv, S, Dh).
        mask: (B, S) bool, True where there is a slot or token.
        positions: (B, Hkv, S), where each stands.
        queries: (B, H, n, Dh) of those who ask, after norm and rotary embedding: of the T tokens themselves or, where
            `later` is set, of tokens behind them all.
        scale: factor of the attention logits.
        bias: (B, Hkv, S), added to them; None for none.
        carried: name -> (B, Hkv, S), what the score left with the old slots; 0 for new tokens.
        old: M, the number of old slots, padding included.
        later: whether those who ask stand behind all candidates, and see them all.
    """

    layer: int
    keys: Tensor
    values: Tensor
    mask: Tensor
    positions: Tensor
    queries: Tensor
    scale: float
    bias: Tensor | None
    carried: Mapping[str, Tensor]
    old: int
    later: bool = False

    @property
    def lengths(self) -> Tensor:
        """The number of tokens in each row, (B,)."""
        return self.mask[:, self.old :].sum(1)

    def zeros(self) -> Tensor:
        """Return a zero for every candidate, (B, Hkv, S), in the precision that scores have."""
        dtype = torch.promote_types(self.keys.dtype, torch.float32)
        return self.keys.new_zeros(self.keys.shape[:3], dtype=dtype)

    def attention(self, asking: Asking) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the attention of a block of queries at a time.

        Args:
            asking: which queries.

        Yields:
            weights (B, Hkv, G, n, S') of n queries on the first S' candidates, those behind them being in the future,
            0 at queries that are none; and which (B, n) are.
        """
        groups = self.queries.shape[1] // self.keys.shape[1]
        batch, _, length, width = self.queries.shape
        queries = self.queries.reshape(batch, -1, groups, length, width) * self.scale
        place = torch.arange(self.keys.shape[2], device=self.mask.device)
        for start in range(0, asking.index.shape[1], BLOCK):
            index = asking.index[:, start : start + BLOCK]
            real = asking.real[:, start : start + BLOCK]
            if not bool(real.any()):
                return
            count = self.keys.shape[2]
            stop = count if self.later else min(self.old + int(index.max()) + 1, count)
            at = index[:, None, None, :, None].expand(*queries.shape[:3], -1, queries.shape[-1])
            logits = queries.gather(3, at) @ self.keys[:, :, None, :stop].mT
            if self.bias is not None:
                logits = logits + self.bias[:, :, None, None, :stop]
            seen = self.mask[:, None, :stop]
            if not self.later:
                seen = seen & (place[:stop] <= self.old + index[..., None])
            logits = logits.to(self.zeros().dtype).masked_fill(~seen[:, None, None], -torch.inf)
            weights = logits.softmax(-1)
            yield weights.masked_fill(~real[:, None, None, :, None], 0), real


@dataclass(frozen=True)
class Asking:
    """Which of the T tokens ask.

    Attributes:
        index: (B, n), in ascending order; of no account where they are not real.
        real: (B, n) bool.
    """

    index: Tensor
    real: Tensor

    @classmethod
    def evenly(cls, lengths: Tensor, most: int | None) -> Asking:
        """Spread at most so many queries over each row's tokens, the last token among them; None asks them all."""
        longest = int(lengths.max())
        count = longest if most is None else min(most, longest)
        turn = torch.arange(count, device=lengths.device)
        spread = (turn + 1) * lengths[:, None] // max(count, 1) - 1
        index = torch.where(lengths[:, None] > count, spread, turn)
        return cls(index.clamp(min=0), turn < lengths[:, None])

    @classmethod
    def last(cls, lengths: Tensor, count: int) -> Asking:
        """Let the last `count` tokens of each row ask."""
        index = lengths[:, None] - count + torch.arange(count, device=lengths.device)
        return cls(index.clamp(min=0), index >= 0)


@dataclass(frozen=True)
class Scored:
    """The result of a score.

    Attributes:
        score: (B, Hkv, S), higher ones are kept; of no account where there is no candidate.
        carried: name -> (B, Hkv, S), what the slots that are kept carry to the next write.
    """

    score: Tensor
    carried: Mapping[str, Tensor]


class Score(ABC):
    """Says what each candidate of one layer is worth.

    Attributes:
        latent: names of the numbers that slots carry from write to write.
    """

    latent: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __call__(self, candidates: Candidates) -> Scored:
        """Score the candidates of one layer."""
