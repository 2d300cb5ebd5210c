"""The settings of the pool's writer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolConfig:
    """Configures MemoryLLM's pool (Wang et al. 2024, arXiv 2402.04624).

    Attributes:
        slots: N, memory tokens of each layer.
        tokens: n, how many of them a write makes new: the hidden states of its last tokens; fewer where it has fewer.
        segment: tokens of one write; by default a context is one.
        per_layer: whether each layer forgets other slots.
        seed: of what is forgotten.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 128
    tokens: int = 16
    segment: int | None = None
    per_layer: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("slots", "tokens", "segment"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.tokens > self.slots:
            raise ValueError(f"tokens must be at most slots={self.slots}, got {self.tokens}")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must be from 0 to 2147483647, got {self.seed}")
