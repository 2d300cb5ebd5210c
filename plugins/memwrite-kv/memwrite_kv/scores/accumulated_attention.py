"""H2O (Zhang et al. 2023, arXiv 2306.14048): the attention that a slot has received."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Asking, Candidates, Score, Scored


@dataclass(frozen=True)
class AccumulatedAttentionConfig(BudgetConfig):
    """Configures H2O.

    Attributes:
        value_norm: multiply by the norm of the value, without which attention moves nothing.
        queries: ask at most so many tokens, spread evenly over a longer context; None asks all.

    Raises:
        ValueError: a value is out of range.
    """

    value_norm: bool = True
    queries: int | None = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries is not None and self.queries < 1:
            raise ValueError(f"queries must be at least 1, got {self.queries}")


class AccumulatedAttention(Score):
    """The mean attention that a slot has received from all tokens that could see it, of all writes.

    The original takes the sum, which favours early tokens; the mean does not.
    """

    latent: ClassVar[tuple[str, ...]] = ("attention", "asked")

    def __init__(self, config: AccumulatedAttentionConfig) -> None:
        self._config = config

    def __call__(self, candidates: Candidates) -> Scored:
        asking = Asking.evenly(candidates.lengths, self._config.queries)
        attention = candidates.carried["attention"]
        for weights, _ in candidates.attention(asking):
            received = weights.mean(2).sum(2)
            attention = attention + F.pad(received, (0, attention.shape[2] - received.shape[2]))
        place = torch.arange(attention.shape[2], device=attention.device) - candidates.old
        # How many ask at each token's own place or behind it.
        last = asking.index.masked_fill(~asking.real, -1).contiguous()
        behind = asking.real.sum(1)[:, None] - torch.searchsorted(
            last.masked_fill(~asking.real, 2**31),
            place.clamp(min=0).expand(len(last), -1).contiguous(),
        )
        asked = candidates.carried["asked"] + behind[:, None].to(attention.dtype)
        score = attention / asked.clamp(min=1)
        if self._config.value_norm:
            score = score * candidates.values.to(score.dtype).norm(dim=-1)
        return Scored(score, {"attention": attention, "asked": asked})
