"""Expected attention (Devoto et al. 2025, arXiv 2510.00636): what queries like those so far would pay behind the context."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memwrite.protocols import Backbone
from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Candidates, Score, Scored
from memwrite_kv.turning import turned


@dataclass(frozen=True)
class ExpectedAttentionConfig(BudgetConfig):
    """Configures expected attention.

    Attributes:
        sinks: first tokens, which are kept and of whose queries no account is taken.
        future: positions behind the context, over which the rotary embedding is averaged.
        covariance: take the queries' covariance into account, not only their mean.
        value_norm: multiply by the norm of the value.

    Raises:
        ValueError: a value is out of range.
    """

    sinks: int = 4
    future: int = 512
    covariance: bool = True
    value_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.future < 1:
            raise ValueError(f"future must be at least 1, got {self.future}")


class ExpectedAttention(Score):
    """The softmax over candidates of k·μ + k'Σk/2 for Gaussian queries, without sinks.

    Mean μ and covariance Σ are of the context's queries before the rotary embedding, turned by its mean over the future.
    """

    def __init__(self, config: ExpectedAttentionConfig, backbone: Backbone) -> None:
        self._config, self._backbone = config, backbone

    def __call__(self, candidates: Candidates) -> Scored:
        config, dtype = self._config, candidates.zeros().dtype
        layer, heads = candidates.layer, candidates.keys.shape[1]
        places = candidates.positions[:, 0, candidates.old :].long()
        length = places.shape[1]
        real = candidates.mask[:, candidates.old :]
        # Where nothing stands before the context its first tokens are no queries like those to come.
        before = candidates.mask[:, : candidates.old].sum(1, keepdim=True)
        order = before + torch.arange(length, device=real.device)
        least = (candidates.mask.sum(1, keepdim=True) - 1).clamp(max=config.sinks)
        counted = real & (order >= least)
        queries = turned(self._backbone, candidates.queries.to(dtype), -places, layer)
        weight = counted[:, None, :, None] / counted.sum(1).clamp(min=1)[:, None, None, None]
        mean = (queries * weight).sum(2, keepdim=True)
        around = (queries - mean) * weight.sqrt()
        ends = places[:, :1] + candidates.lengths[:, None]
        average = self._average(ends, queries, layer)
        mean = mean @ average
        groups = queries.shape[1] // heads
        keys = candidates.keys.to(dtype).repeat_interleave(groups, 1)
        logits = (keys @ mean.mT)[..., 0] * candidates.scale
        if config.covariance:
            spread = average.mT @ (around.mT @ around) @ average
            logits = logits + ((keys @ spread) * keys).sum(-1) * candidates.scale**2 / 2
        if candidates.bias is not None:
            logits = logits + candidates.bias.repeat_interleave(groups, 1)
        place = candidates.mask.cumsum(1) - 1
        asked = candidates.mask & (place >= config.sinks)
        weights = logits.masked_fill(~asked[:, None], -torch.inf).softmax(-1).nan_to_num(0)
        score = weights.reshape(len(weights), heads, groups, -1).mean(2)
        if config.value_norm:
            score = score * candidates.values.to(dtype).norm(dim=-1)
        return Scored(score, {})

    def _average(self, ends: Tensor, like: Tensor, layer: int) -> Tensor:
        """Return the mean (B, 1, Dh, Dh) of the rotations by the positions from `ends` (B, 1) on; x @ it turns x."""
        width, future = like.shape[-1], self._config.future
        basis = torch.eye(width, dtype=like.dtype, device=like.device)
        basis = basis[None, :, None].expand(len(ends), -1, future, -1)
        by = ends + torch.arange(future, device=ends.device)
        return turned(self._backbone, basis, by, layer).mean(2)[:, None]
