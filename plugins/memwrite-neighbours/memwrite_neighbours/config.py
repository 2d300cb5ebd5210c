"""The settings of the writer that keeps every key and value, and of the readers that look up the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What places the memory takes: those that it was read at, or the first one for all.
Positions = Literal["own", "zero"]


@dataclass(frozen=True)
class NeighboursConfig:
    """Configures how a context is read whose keys and values are all kept.

    Attributes:
        segment: tokens that are read at once, on their own, so that a context may be longer than the model's positions; by
            default every token is read behind all that was kept before it.
        overlap: so many of the tokens before a segment are read again in front of it.

    Raises:
        ValueError: a value is out of range.
    """

    segment: int | None = None
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.segment is not None and self.segment < 1:
            raise ValueError(f"segment must be at least 1, got {self.segment}")
        if self.overlap < 0 or (self.overlap and self.segment is None):
            raise ValueError(
                f"overlap must not be negative, and is for segments alone, got {self.overlap}"
            )


@dataclass(frozen=True)
class _NearestConfig:
    """What both readers have in common.

    Attributes:
        nearest: slots that each query looks up, for each head (k).
        layers: attention layers that look up; by default all. The others do not see the memory.

    Raises:
        ValueError: a value is out of range.
    """

    nearest: int
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.nearest < 1:
            raise ValueError(f"nearest must be at least 1, got {self.nearest}")
        if any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers must not be negative, got {list(self.layers)}")


@dataclass(frozen=True)
class ExtendedMindConfig(_NearestConfig):
    """Configures Extended Mind (Klett and Ahle 2024, arXiv 2406.02332).

    Attributes:
        nearest: slots that each query looks up, for each head (k).
        similarity: slots whose cosine is no larger are not seen, however near; by default there is no such bound. The
            authors' is 0.25.
        special: whether tokens that open or close a text are looked up like others.
        positions: "own" puts the memory before the query, as it was read, and compares keys and queries without their
            positions; "zero" gives every slot the position 0 and the query those from 0 on, and compares them as they
            are then, as the authors' Llama does.

    Raises:
        ValueError: a value is out of range.
    """

    nearest: int = 10
    similarity: float | None = None
    special: bool = False
    positions: Positions = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.similarity is not None and not -1 <= self.similarity <= 1:
            raise ValueError(f"similarity must be a cosine, got {self.similarity}")
        if self.positions not in ("own", "zero"):
            raise ValueError(f"positions must be own or zero, got '{self.positions}'")


@dataclass(frozen=True)
class MemorizingConfig(_NearestConfig):
    """Configures Memorizing Transformers (Wu et al. 2022, arXiv 2203.08913).

    Attributes:
        nearest: slots that each query looks up, for each head (k).
        scale: factor of the cosines at the start; learned for each layer and head.
        local: whether the logits of the text itself become such cosines, too, as in the reference code, which trains
            the model along with them; by default they stay the model's own.

    Raises:
        ValueError: a value is out of range.
    """

    nearest: int = 32
    scale: float = 20.0
    local: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive, got {self.scale}")
