"""What can be set on the writers of fast weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


def checked_layers(layers: list[int]) -> None:
    """Raise a ValueError unless these are different numbers from 0 on."""
    if len(set(layers)) < len(layers) or any(layer < 0 for layer in layers):
        raise ValueError(f"layers must be different numbers from 0 on, got {layers}")


@dataclass(frozen=True)
class FastWeightsConfig:
    """Configures what all writers of fast weights share.

    Attributes:
        rank: Dk, width of keys and queries, and of values and reads where no other is set.
        heads: H, memories per layer; their reads are concatenated.
        layers: of the backbone, from 0; by default all of them.
        chunk: tokens whose gradients are taken at the same weights, those from the start of the chunk.

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 8
    heads: int = 1
    layers: list[int] = field(default_factory=list)
    chunk: int = 16

    def __post_init__(self) -> None:
        self._at_least_one("rank", "heads", "chunk")
        checked_layers(self.layers)

    def _at_least_one(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def _finite(self, *names: str) -> None:
        for name in names:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")

    @property
    def values(self) -> int:
        """Return the width of values and reads."""
        return self.rank


@dataclass(frozen=True)
class ValuesConfig(FastWeightsConfig):
    """Configures what writers share whose values may have a width of their own.

    Attributes:
        value_width: Dv, width of values and reads; by default `rank`.

    Raises:
        ValueError: a value is out of range.
    """

    value_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_width is not None:
            self._at_least_one("value_width")

    @property
    def values(self) -> int:
        """Return the width of values and reads."""
        return self.rank if self.value_width is None else self.value_width


@dataclass(frozen=True)
class TitansConfig(ValuesConfig):
    """Configures Titans' memory (arXiv 2501.00663).

    Attributes:
        momentum: keep a momentum S; without it η = 0.
        max_step: what θ stays below; by default Dv/(2·chunk), so that no chunk of one key overshoots without momentum.
        step_bias: at the start θ = σ(step_bias) · max_step.
        momentum_bias: at the start η = σ(momentum_bias).
        forget_bias: at the start α = σ(forget_bias).

    Raises:
        ValueError: a value is out of range.
    """

    momentum: bool = True
    max_step: float | None = None
    step_bias: float = 0.0
    momentum_bias: float = -2.0
    forget_bias: float = -6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.most_step < math.inf:
            raise ValueError(f"max_step must be positive, got {self.max_step}")
        self._finite("step_bias", "momentum_bias", "forget_bias")

    @property
    def inner(self) -> int | None:
        """Return the width between the memory's two matrices; None for a memory of one."""
        return None

    @property
    def most_step(self) -> float:
        """Return what θ stays below."""
        return self.values / (2 * self.chunk) if self.max_step is None else self.max_step


@dataclass(frozen=True)
class TitansMlpConfig(TitansConfig):
    """Configures Titans' memory of two matrices with a GELU between them.

    Attributes:
        expand: the width between them is `expand` · `rank`.

    Raises:
        ValueError: a value is out of range.
    """

    expand: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("expand")

    @property
    def inner(self) -> int:
        """Return the width between the two matrices."""
        return self.expand * self.rank


@dataclass(frozen=True)
class TttConfig(FastWeightsConfig):
    """Configures TTT-Linear (arXiv 2407.04620).

    Attributes:
        learning_rate: a token's step is σ(w x + b) · `learning_rate` / Dk.

    Raises:
        ValueError: a value is out of range.
    """

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    @property
    def inner(self) -> int | None:
        """Return the width between the network's two layers; None for a network of one."""
        return None


@dataclass(frozen=True)
class TttMlpConfig(TttConfig):
    """Configures TTT-MLP (arXiv 2407.04620).

    Attributes:
        expand: the width between its two layers is `expand` · `rank`.

    Raises:
        ValueError: a value is out of range.
    """

    learning_rate: float = 0.1
    expand: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("expand")

    @property
    def inner(self) -> int:
        """Return the width between the two layers."""
        return self.expand * self.rank


@dataclass(frozen=True)
class LactConfig(ValuesConfig):
    """Configures LaCT (arXiv 2505.23884).

    Attributes:
        chunk: tokens that are read with the same weights, and whose gradients change them together.
        expand: the width inside of the SwiGLU is `expand` · `rank`.
        learning_rate: of each matrix at the start.
        momentum: keep the last chunk's step.
        muon: make the steps orthogonal, by Newton and Schulz's iterations.

    Raises:
        ValueError: a value is out of range.
    """

    chunk: int = 64
    expand: int = 2
    learning_rate: float = 0.1
    momentum: bool = True
    muon: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("expand")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclass(frozen=True)
class LatticeConfig(ValuesConfig):
    """Configures Lattice's memory (arXiv 2504.05646).

    Attributes:
        rank: Dk, the number of slots, and the width of keys and queries.
        max_step: what θ stays below; by default 1/chunk, so that no chunk of one key overshoots.
        step_bias: at the start θ = σ(step_bias) · max_step.

    Raises:
        ValueError: a value is out of range.
    """

    max_step: float | None = None
    step_bias: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.most_step < math.inf:
            raise ValueError(f"max_step must be positive, got {self.max_step}")
        self._finite("step_bias")

    @property
    def most_step(self) -> float:
        """Return what θ stays below."""
        return 1 / self.chunk if self.max_step is None else self.max_step


@dataclass(frozen=True)
class EndToEndConfig:
    """Configures TTT-E2E (arXiv 2512.23675) with low-rank weights.

    Attributes:
        rank: r, of every change.
        alpha: changes are (alpha / r)·B A; the reader `per-example-lora` needs the same.
        projections: which of a layer's MLP are changed: "gate" (not every model has one), "up" and "down".
        layers: of the backbone, from 0; by default the last quarter of them.
        chunk: tokens of a step; each is read behind as many before it.
        learning_rate: of the steps.
        clip: the longest gradient of a step, of all weights of a row together.

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    projections: list[str] = field(default_factory=lambda: ["up", "down"])
    layers: list[int] = field(default_factory=list)
    chunk: int = 16
    learning_rate: float = 0.3
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rank", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("alpha", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        checked_layers(self.layers)
        known = set(self.projections) <= {"gate", "up", "down"}
        if not known or not self.projections or len(set(self.projections)) < len(self.projections):
            raise ValueError(
                f"projections must be some of gate, up and down, each once, got {self.projections}"
            )
