"""Which slots of a memory are nearest to each query of a layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.modules.positions import moved
from memwrite.protocols import Backbone, LayerActivations


def without_positions(backbone: Backbone, seen: LayerActivations) -> Tensor:
    """Return the queries (B, H, T, Dh) as at position 0."""
    at = seen.positions
    if at is None:
        return seen.queries
    shape = (seen.queries.shape[0], seen.queries.shape[2])
    return moved(backbone, seen.queries[:, None], -at.expand(shape), [seen.layer])[:, 0]


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the cosines (B, H, T, M) of queries (B, H, T, Dh) and keys (B, Hkv, M, Dh), whose heads serve H / Hkv each."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    wide, groups = queries.to(dtype), queries.shape[1] // keys.shape[1]
    directions = F.normalize(keys.to(dtype), dim=-1).repeat_interleave(groups, 1)
    return F.normalize(wide, dim=-1) @ directions.mT


def nearest(similarity: Tensor, seen: Tensor, count: int, least: float | None) -> Tensor:
    """Return which slots (B, H, T, M) bool each query looks up: the `count` most similar that it may see.

    Args:
        similarity: (B, H, T, M).
        seen: (B, M) bool, which slots may be seen at all.
        count: k.
        least: no slot is looked up whose similarity is no larger; None for no such bound.
    """
    hidden = ~seen[:, None, None]
    ranked = similarity.detach().masked_fill(hidden, -torch.inf)
    best = ranked.topk(min(count, ranked.shape[-1]), -1).indices
    chosen = torch.zeros_like(ranked, dtype=torch.bool).scatter(-1, best, True) & ~hidden
    return chosen if least is None else chosen & (ranked > least)
