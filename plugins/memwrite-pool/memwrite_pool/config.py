"""The settings of the pool's writer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolConfig:
    """Configures MemoryLLM's pool (Wang et al. 2024, arXiv 2402.04624), with `long` M+'s (Wang et al. 2025, 2502.00592).

    Attributes:
        slots: N, memory tokens of each layer.
        tokens: n, how many of them a write makes new: the hidden states of its last tokens; fewer where it has fewer.
        segment: tokens of one write; by default a context is one.
        per_layer: whether each layer forgets other slots.
        seed: of what is forgotten.
        long: R, slots of each layer for what the pool forgets, the last R of it; 0 for none.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 128
    tokens: int = 16
    segment: int | None = None
    per_layer: bool = False
    seed: int = 0
    long: int = 0

    def __post_init__(self) -> None:
        for name in ("slots", "tokens", "segment"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.tokens > self.slots:
            raise ValueError(f"tokens must be at most slots={self.slots}, got {self.tokens}")
        if self.long < 0:
            raise ValueError(f"long must not be negative, got {self.long}")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must be from 0 to 2147483647, got {self.seed}")


@dataclass(frozen=True)
class PoolReaderConfig:
    """Configures how a pool is read.

    Attributes:
        retrieved: slots of the long-term memory that each query looks up, for each head; the pool itself is always seen.

    Raises:
        ValueError: it is negative.
    """

    retrieved: int = 16

    def __post_init__(self) -> None:
        if self.retrieved < 0:
            raise ValueError(f"retrieved must not be negative, got {self.retrieved}")
