"""The settings of ARMT's writer and reader."""

from __future__ import annotations

from dataclasses import dataclass


def _at_least_one(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class AssociativeReaderConfig:
    """Configures how a memory is read.

    Attributes:
        rank: width of queries before their features; as the writer's.
        order: ν of the features DPFP-ν; as the writer's.

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 64
    order: int = 3

    def __post_init__(self) -> None:
        _at_least_one(self, "rank", "order")


@dataclass(frozen=True)
class AssociativeConfig(AssociativeReaderConfig):
    """Configures ARMT (Rodkin et al. 2024, arXiv 2407.04841).

    Attributes:
        rank: width of keys and queries before their features.
        order: ν of the features DPFP-ν, of which there are 2 ν rank.
        slots: memory tokens behind each segment, the only ones that are written.
        segment: tokens per segment, written one after the other; by default the context is one segment.
        correction: whether z, which normalises reads, grows only by what a key has that is new. Gradients do not go
            through how new it is, so that with it they are not those of finite differences.
        init_std: standard deviation of the learned memory tokens at the start.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 8
    segment: int | None = None
    correction: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "slots", "segment")
        if not 0 <= self.init_std < float("inf"):
            raise ValueError(f"init_std must not be negative, got {self.init_std}")
