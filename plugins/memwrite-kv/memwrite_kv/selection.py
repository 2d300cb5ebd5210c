"""Keep the best: from scores of candidates to the slots that stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chosen:
    """The slots that stay, in the order of their candidates.

    Attributes:
        index: (B, Hkv, M), number of the candidate; of no account where there is no slot.
        real: (B, M) bool, where there is one.
    """

    index: Tensor
    real: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        """Pick from (B, Hkv, S) or (B, Hkv, S, Dh); 0 where there is no slot."""
        index, real = self.index, self.real[:, None]
        if tensor.ndim == 4:
            index, real = index[..., None].expand(-1, -1, -1, tensor.shape[-1]), real[..., None]
        return tensor.gather(2, index).masked_fill(~real, 0)

    def columns(self, tensor: Tensor, nothing: float) -> Tensor:
        """Pick (B, Hkv, n, M) from (B, Hkv, n, S), `nothing` where there is no slot."""
        picked = tensor.gather(-1, self.index[:, :, None].expand(-1, -1, tensor.shape[2], -1))
        return picked.masked_fill(~self.real[:, None, None], nothing)


def best(score: Tensor, mask: Tensor, count: Tensor, slots: int, sinks: int, recent: int) -> Chosen:
    """Choose the best candidates of each head, and the first and last ones in any case.

    Args:
        score: (B, Hkv, S).
        mask: (B, S) bool, where there is a candidate.
        count: (B,), how many are chosen, at most as many as there are.
        slots: M, at least the largest count.
        sinks: so many of the first candidates are chosen before all others.
        recent: likewise of the last ones.
    """
    place = mask.cumsum(1) - 1
    always = mask & ((place < sinks) | (place >= mask.sum(1, keepdim=True) - recent))
    order = score.masked_fill(always[:, None], torch.inf).masked_fill(~mask[:, None], -torch.inf)
    ranked = order.argsort(dim=-1, descending=True, stable=True)[..., :slots]
    ranked = torch.nn.functional.pad(ranked, (0, slots - ranked.shape[-1]))
    real = torch.arange(slots, device=mask.device) < count[:, None]
    behind = torch.where(real[:, None], ranked, mask.shape[1]).sort(-1).values
    return Chosen(behind.masked_fill(~real[:, None], 0), real)


#: Share of its slots that every head keeps in use, however little it scores (AdaKV's safeguard).
SAFE = 0.2


def shared_among_heads(score: Tensor, chosen: Chosen, used: float) -> Tensor:
    """Return which chosen slots (B, Hkv, M) a layer uses when its heads share one budget.

    AdaKV (Feng et al. 2024, arXiv 2407.11550): the best of all heads together, but some of each.

    Args:
        score: (B, Hkv, S), -inf where a candidate is hidden from a head.
        chosen: of these candidates.
        used: share of the layer's slots.
    """
    picked = score.gather(2, chosen.index).masked_fill(~chosen.real[:, None], -torch.inf)
    place = picked.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    count = chosen.real.sum(1)[:, None, None]
    safe = place < (count * min(SAFE, used)).ceil()
    flat = picked.masked_fill(safe & ~picked.isneginf(), torch.inf).flatten(1)
    rank = flat.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    budget = (count[:, 0] * score.shape[1] * used - 1e-9).ceil()
    return (rank < budget).reshape(picked.shape) & ~picked.isneginf()
