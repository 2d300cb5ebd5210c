"""Queries at other positions than their own."""

from __future__ import annotations

from torch import Tensor

from memwrite.modules.positions import moved
from memwrite.protocols import Backbone


def turned(backbone: Backbone, queries: Tensor, by: Tensor, layer: int) -> Tensor:
    """Move the queries (B, H, n, Dh) of one layer by (B, n) positions; they stay where positions are no rotations."""
    return moved(backbone, queries[:, None], by, [layer])[:, 0]
