"""A control: slots without any reason."""

from __future__ import annotations

import torch

from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Candidates, Score, Scored


class Random(Score):
    """A number that depends on nothing but the layer, the head and how many tokens came before.

    New tokens are drawn anew against old slots in every write, so old ones grow rarer, as in a window.
    """

    def __init__(self, config: BudgetConfig) -> None:
        """Nothing is set beside the budget."""

    def __call__(self, candidates: Candidates) -> Scored:
        heads, count = candidates.keys.shape[1:3]
        generator = torch.Generator().manual_seed(candidates.layer)
        # One column per place, so that a longer row beside it changes nothing.
        drawn = torch.rand(count, heads, generator=generator, dtype=torch.float64).T
        place = (candidates.mask.cumsum(1) - 1).clamp(min=0)[:, None].expand(-1, heads, -1)
        drawn = drawn.to(candidates.keys.device).expand(len(place), -1, -1)
        return Scored(drawn.gather(2, place).to(candidates.zeros().dtype), {})
