"""StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): the first tokens, and a window of the last."""

from __future__ import annotations

from dataclasses import dataclass

from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Candidates, Score, Scored


@dataclass(frozen=True)
class FirstAndLastConfig(BudgetConfig):
    """Configures StreamingLLM: `sinks` first tokens, the last ones in all other slots, and keys rewound as in the paper."""

    sinks: int = 4
    rewind: bool = True


class FirstAndLast(Score):
    """How late a token came."""

    def __init__(self, config: FirstAndLastConfig) -> None:
        """Nothing is set beside the budget and the positions."""

    def __call__(self, candidates: Candidates) -> Scored:
        place = candidates.mask.cumsum(1)[:, None]
        return Scored(candidates.zeros() + place, {})
