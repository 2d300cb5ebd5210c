"""Positions of bounded key-value memories: writing again and again must not run out of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memwrite.protocols import Backbone, KeyValues


def rewind(backbone: Backbone, key_values: KeyValues, positions: Tensor) -> KeyValues:
    """Give the n real slots of each row the positions 0 to n - 1, in slot order.

    A bounded key-value memory that keeps some slots and drops others calls this at the end of each write, so that the
    next write and every query find the positions behind it free.

    Args:
        backbone: the model that made the keys.
        key_values: B memories of M slots.
        positions: the position that each slot has now, (B, M), or (B, L, Hkv, M) where heads differ; of no account at
            padding.

    Returns:
        The same slots, their keys rotated, with `next_position` n.

    Raises:
        ConfigError: the model's positions are not rotations of its keys.
    """
    real = key_values.mask
    shape = real.shape if positions.ndim == 2 else (real.shape[0], 1, 1, real.shape[1])
    place = real.cumsum(1) - 1
    by = torch.where(real.view(shape), place.view(shape) - positions, 0)
    return replace(key_values, keys=backbone.rotate(key_values.keys, by), next_position=real.sum(1))
