"""What can be set on the matrix writers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

GRANULARITIES = ("token", "message", "sentence")
READS = ("earlier", "before")
FORGETTING = ("coupled", "free", "none")
UPDATES = ("standard", "lambda_outside")
GATES = ("row", "head")


@dataclass(frozen=True)
class MatrixConfig:
    """Configures what all matrix writers share.

    Attributes:
        rank: r, width of keys and queries.
        value_width: width of values and reads; by default r.
        heads: H, states per layer; their reads are concatenated.
        layers: of the backbone, from 0; by default all of them.
        granularity: one write per "token", or per "message" or "sentence", of the mean of its hidden states. Tokens
            that come without segments are written, and read, one by one; a message that is cut because the context is
            longer than the model's positions is written in parts.
        reads: what a token reads: "earlier", the state after all writes before it; or, where messages or sentences
            are written, "before", the state before the call, as δ-mem's released code has it.
        writes: times that every key and value is written.

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 8
    value_width: int | None = None
    heads: int = 1
    layers: list[int] = field(default_factory=list)
    granularity: str = "token"
    reads: str = "earlier"
    writes: int = 1

    def __post_init__(self) -> None:
        for name in ("rank", "value_width", "heads", "writes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if len(set(self.layers)) < len(self.layers) or any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers must be different numbers from 0 on, got {self.layers}")
        self._one_of("granularity", GRANULARITIES)
        self._one_of("reads", READS)
        if self.reads == "before" and self.granularity == "token":
            raise ValueError("reads before goes with granularity message or sentence, not token")

    def _one_of(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"{name} must be {' or '.join(choices)}, got '{getattr(self, name)}'")

    @property
    def values(self) -> int:
        """Return the width of values and reads."""
        return self.rank if self.value_width is None else self.value_width


@dataclass(frozen=True)
class DeltaConfig(MatrixConfig):
    """Configures δ-mem's gated delta rule (arXiv 2605.12357).

    Attributes:
        gates: one for each "row" of a state, or one for each "head".
        forgetting: "coupled" (λ = 1 − β), "free" (λ of its own) or "none" (λ = 1).
        update: what the erased part is taken from: "standard", S' = λS − β(Sk)kᵀ + βvkᵀ, or "lambda_outside",
            S' = λ(S − β(Sk)kᵀ) + βvkᵀ.
        most_keep: λ at most, with "free". Below 1, and with "lambda_outside", the state is bounded whatever it reads.
        normalize: keys are tanh'd and scaled to length 1.
        beta_bias: at the start β = σ(beta_bias).
        keep_bias: at the start a free λ = σ(keep_bias) · most_keep; by default −beta_bias, as in δ-mem.
        gate_weight: of (mean β − gate_target)² in the training loss; 0 for none.
        gate_target: from 0 to 1.

    Raises:
        ValueError: a value is out of range.
    """

    gates: str = "row"
    forgetting: str = "coupled"
    update: str = "standard"
    most_keep: float = 1.0
    normalize: bool = True
    beta_bias: float = -1.5
    keep_bias: float | None = None
    gate_weight: float = 0.0
    gate_target: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("gates", GATES)
        self._one_of("forgetting", FORGETTING)
        self._one_of("update", UPDATES)
        if not 0 < self.most_keep <= 1:
            raise ValueError(f"most_keep must be above 0 and at most 1, got {self.most_keep}")
        if self.forgetting != "free" and (self.most_keep < 1 or self.keep_bias is not None):
            raise ValueError(
                f"most_keep and keep_bias go with forgetting free, not '{self.forgetting}'"
            )
        for name in ("beta_bias", "keep_bias"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if not 0 <= self.gate_weight < float("inf"):
            raise ValueError(f"gate_weight must not be negative, got {self.gate_weight}")
        if not 0 <= self.gate_target <= 1:
            raise ValueError(f"gate_target must be from 0 to 1, got {self.gate_target}")

    @property
    def bounded(self) -> bool:
        """Return whether no context can make the state grow beyond a multiple of its largest value; see the README."""
        outside = self.update == "lambda_outside" and self.normalize
        return outside and (self.forgetting == "coupled" or self.most_keep < 1)


@dataclass(frozen=True)
class HebbianConfig(MatrixConfig):
    """Configures fast weights (Ba et al. 2016, arXiv 1610.06258, equation 1): S' = λS + ηvkᵀ.

    Attributes:
        keep: λ, above 0 and at most 1.
        learning_rate: η.

    Raises:
        ValueError: a value is out of range.
    """

    keep: float = 0.95
    learning_rate: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, got {self.keep}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    @property
    def bounded(self) -> bool:
        """Return whether no context can make the state grow beyond a multiple of its largest value."""
        return self.keep < 1


@dataclass(frozen=True)
class GatedDeltaConfig(MatrixConfig):
    """Configures gated DeltaNet (Yang et al. 2024, arXiv 2412.06464, equation 10): S' = α(S − β(Sk)kᵀ) + βvkᵀ."""

    @property
    def bounded(self) -> bool:
        """Return False: α may come as near to 1 as it likes."""
        return False
