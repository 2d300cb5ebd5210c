"""KeyDiff (Park et al. 2025, arXiv 2504.15364): keys that are unlike the others."""

from __future__ import annotations

from torch.nn import functional as F

from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Candidates, Score, Scored


class KeyDiversity(Score):
    """The cosine between a key and the mean of all keys' directions, negative."""

    def __init__(self, config: BudgetConfig) -> None:
        """Nothing is set beside the budget."""

    def __call__(self, candidates: Candidates) -> Scored:
        keys = F.normalize(candidates.keys.to(candidates.zeros().dtype), dim=-1)
        real = candidates.mask[:, None, :, None]
        mean = keys.masked_fill(~real, 0).sum(2) / real.sum(2).clamp(min=1)
        return Scored(-(keys @ F.normalize(mean, dim=-1)[..., None])[..., 0], {})
