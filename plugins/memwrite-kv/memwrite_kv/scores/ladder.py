"""LaCache (Shi et al. 2025, arXiv 2507.14204): each layer keeps other stretches of the text, like the steps of a ladder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Candidates, Score, Scored


@dataclass(frozen=True)
class LadderConfig(BudgetConfig):
    """Configures LaCache.

    Attributes:
        step: neighbouring tokens that a layer keeps at a time.

    Raises:
        ValueError: a value is out of range, or the budget is in bytes.
    """

    step: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step < 1:
            raise ValueError(f"step must be at least 1, got {self.step}")
        if self.bytes is not None:
            raise ValueError("a ladder needs its budget in slots or as a ratio, not in bytes")


class Ladder(Score):
    """Whether a token is on this layer's steps, and then how late it came.

    Between sinks and recent tokens the text is cut into ladders, so long that one step of each fits the budget. Layer l keeps
    the step that begins l places on, and begins again where the ladder ends, so that enough layers see every token.
    """

    def __init__(self, config: LadderConfig) -> None:
        self._config = config

    def __call__(self, candidates: Candidates) -> Scored:
        config, count = self._config, candidates.mask.sum(1, keepdim=True)
        slots = torch.full_like(count, config.slots)
        if config.ratio is not None:
            slots = (count * config.ratio).ceil().to(count.dtype)
        always = config.sinks + config.recent
        room, between = (slots - always).clamp(min=1), (count - always).clamp(min=1)
        length = -(between * config.step // -room).clamp(max=-config.step)
        start = candidates.layer % (length - config.step + 1)
        place = candidates.mask.cumsum(1) - 1
        rung = (place - config.sinks) % length
        kept = (start <= rung) & (rung < start + config.step)
        score = kept + place / count.clamp(min=1)
        return Scored(candidates.zeros() + score[:, None], {})
