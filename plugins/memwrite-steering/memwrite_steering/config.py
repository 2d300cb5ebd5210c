"""The settings of writers and reader of steering vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class NoParams:
    """Nothing can be set."""


@dataclass(frozen=True)
class SteeringReaderConfig:
    """Configures how a steering vector is added to the residual stream.

    Attributes:
        strength: α; 0 changes nothing, a negative one steers the other way.
        layers: attention layers behind which it is added, each its own vector; by default the middle one.
        probed: whether only hidden states are steered that are nearer to the negative texts than to the positive ones
            (mode steering).

    Raises:
        ValueError: a value is out of range.
    """

    strength: float = 1.0
    layers: tuple[int, ...] = ()
    probed: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ValueError(f"strength must be a number, got {self.strength}")
        if any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers must not be negative, got {list(self.layers)}")


@dataclass(frozen=True)
class SteeredCacheConfig:
    """Configures KV cache steering (Belitsky et al. 2025, arXiv 2507.08799).

    Attributes:
        keys: factor of what is added to the keys.
        values: factor of what is added to the values.

    Raises:
        ValueError: a value is out of range.
    """

    keys: float = 0.3
    values: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.keys) and math.isfinite(self.values)):
            raise ValueError(f"keys and values must be numbers, got {self.keys} and {self.values}")
