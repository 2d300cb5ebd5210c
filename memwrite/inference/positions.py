"""Positions of a bounded key-value memory, which would run out if every write went on where the last one ended."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.protocols import Backbone, KeyValues


def rewind(backbone: Backbone, past: KeyValues, positions: Tensor) -> KeyValues:
    """Move the real slots to the positions 0, 1, ... in their order, and the next token behind them.

    A bounded key-value state that is written on and on calls it after every write: the slots stay in the order in which
    they stood, and the model never runs out of positions.

    Args:
        backbone: rotates the keys.
        past: the slots to keep.
        positions: (B, M), where each slot stands now.

    Raises:
        ConfigError: the model's positions are not rotations of its keys.
    """
    order = positions.masked_fill(~past.mask, torch.iinfo(torch.int64).max).argsort(1).argsort(1)
    by = torch.where(past.mask, order - positions, 0)
    keys = backbone.rotate(past.keys, by)
    return KeyValues(keys, past.values, past.mask, past.mask.sum(1), past.bias)
