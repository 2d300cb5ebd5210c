"""SnapKV (Li et al. 2024, arXiv 2404.14469): the attention that the last tokens pay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Asking, Candidates, Score, Scored


@dataclass(frozen=True)
class LastQueriesConfig(BudgetConfig):
    """Configures SnapKV, which besides keeps its window: set `recent` to `window` for that.

    Attributes:
        window: tokens at the end of the context whose attention counts.
        pool: width of the average over neighbouring slots, odd; 1 for none.

    Raises:
        ValueError: a value is out of range.
    """

    window: int = 16
    pool: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.pool < 1 or not self.pool % 2:
            raise ValueError(f"pool must be odd and at least 1, got {self.pool}")


class LastQueries(Score):
    """The mean attention from the last tokens, averaged over neighbouring slots, so that what belongs together stays."""

    def __init__(self, config: LastQueriesConfig) -> None:
        self._config = config

    def __call__(self, candidates: Candidates) -> Scored:
        score = candidates.zeros()
        asking = Asking.last(candidates.lengths, self._config.window)
        for weights, _ in candidates.attention(asking):
            received = weights.mean(2).sum(2)
            score = score + F.pad(received, (0, score.shape[2] - received.shape[2]))
        score = score / asking.real.sum(1).clamp(min=1)[:, None, None]
        # Empty slots between old and new are nobody's neighbours.
        order = (~candidates.mask).to(torch.uint8).argsort(dim=1, stable=True)
        order = order[:, None].expand_as(score)
        pool = self._config.pool
        pooled = F.avg_pool1d(score.gather(2, order), pool, 1, pool // 2)
        return Scored(score.scatter(2, order, pooled), {})
