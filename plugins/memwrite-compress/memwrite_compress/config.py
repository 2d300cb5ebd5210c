"""The settings that all compressors share."""

from __future__ import annotations

from dataclasses import dataclass, field

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class CompressionConfig:
    """Configures compression tokens.

    Attributes:
        slots: m, compression tokens behind each segment.
        segment: tokens per segment, compressed one after the other; by default a context is one segment.
        rank: of the LoRA with which the model compresses; 0 for none.
        alpha: the LoRA is scaled by alpha / rank.
        projections: where it acts: of a layer's "q", "k", "v", "o" and of its MLP's "gate" (not every model has one), "up",
            "down".
        init_std: standard deviation of the compression tokens' embeddings at the start.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 8
    segment: int | None = None
    rank: int = 0
    alpha: float = 16.0
    projections: list[str] = field(default_factory=lambda: ["q", "k", "v", "o"])
    init_std: float = 0.02

    def __post_init__(self) -> None:
        at_least(1, self, "slots", "segment")
        at_least(0, self, "rank")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        if not 0 <= self.init_std < float("inf"):
            raise ValueError(f"init_std must not be negative, got {self.init_std}")
        unknown = [name for name in self.projections if name not in PROJECTIONS]
        if unknown or not self.projections:
            raise ValueError(
                f"projections must name at least one of {', '.join(PROJECTIONS)}, got {self.projections}"
            )


def at_least(least: int, config: object, *names: str) -> None:
    """Refuse settings that are below `least`; None is no setting.

    Raises:
        ValueError: one is.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
