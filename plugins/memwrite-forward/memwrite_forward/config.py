"""The settings of the forward writer."""

from __future__ import annotations

from dataclasses import dataclass

PROJECTIONS = ("none", "write", "read-write")


@dataclass(frozen=True)
class ForwardConfig:
    """Configures RMT's recurrence.

    Attributes:
        slots: M, memory vectors.
        steps: K, forward passes over each segment.
        segment: tokens per segment, written one after the other; by default the context is one segment.
        control_tokens: learned embeddings on either side of the slots, others in writing than in reading.
        projection: learned linear maps of the memory: "none", "write" (before it is written with), or
            "read-write" (one more before it is read).
        residual: from the second pass on, add the layer-normed output to the memory instead of replacing it.
        gate: add the output to the learned start of the slots instead of replacing them, times a factor for each number
            that is learned and starts here. Around a model that was not trained for it, outputs are no embeddings: a
            small factor has memories begin as the start alone, which does no harm (ReZero, arXiv 2003.04887).
        reconstruction_weight: of the context's reconstruction loss in the training loss; 0 for none.
        write_head: a vocabulary head of its own for the reconstruction, starting as the model's.
        init_std: standard deviation of the learned start of slots and control tokens.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 8
    steps: int = 1
    segment: int | None = None
    control_tokens: int = 0
    projection: str = "none"
    residual: bool = False
    gate: float | None = None
    reconstruction_weight: float = 0.0
    write_head: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("slots", "steps", "segment"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("control_tokens", "reconstruction_weight", "init_std"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.projection not in PROJECTIONS:
            raise ValueError(
                f"projection must be {' or '.join(PROJECTIONS)}, got '{self.projection}'"
            )
        if self.gate is not None:
            if not 0 < self.gate < float("inf"):
                raise ValueError(f"gate must be positive and finite, got {self.gate}")
            if self.residual:
                raise ValueError(
                    "gate goes without residual: either says what an output is added to"
                )
        if self.write_head and not self.reconstruction_weight:
            raise ValueError("write_head goes with a reconstruction_weight above 0")
