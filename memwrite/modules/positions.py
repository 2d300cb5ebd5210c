"""Keys and queries at other positions than their own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memwrite.errors import ConfigError
from memwrite.protocols import Backbone


def moved(
    backbone: Backbone, keys: Tensor, by: Tensor, layers: Sequence[int] | None = None
) -> Tensor:
    """Move keys or queries as `Backbone.rotate` does; they stay where a model's positions are no rotations."""
    try:
        return backbone.rotate(keys, by, layers)
    except ConfigError:
        return keys
