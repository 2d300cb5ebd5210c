"""Knorm (Devoto et al. 2024, arXiv 2406.11430): keys of a small norm draw attention."""

from __future__ import annotations

from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Candidates, Score, Scored


class KeyNorm(Score):
    """The norm of the key, negative."""

    def __init__(self, config: BudgetConfig) -> None:
        """Nothing is set beside the budget."""

    def __call__(self, candidates: Candidates) -> Scored:
        return Scored(-candidates.keys.norm(dim=-1), {})
