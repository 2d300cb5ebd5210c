"""What can be set on the writers of regressions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SOLVERS = ("exact", "cg")


@dataclass(frozen=True)
class RidgeConfig:
    """Configures ridge regression (Hoerl and Kennard 1970): S = Σ β v kᵀ and G = Σ β k kᵀ, read by S (G + λ)⁻¹ q.

    Attributes:
        rank: Dk, width of keys and queries.
        value_width: Dv, width of values and reads; by default Dk.
        heads: H, regressions per layer; their reads are concatenated.
        layers: of the backbone, from 0; by default all of them.
        ridge: λ. The smaller, the better are few pairs recalled, and the worse are many whose keys are alike.
        beta_bias: at the start a token weighs β = σ(beta_bias).

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 8
    value_width: int | None = None
    heads: int = 1
    layers: list[int] = field(default_factory=list)
    ridge: float = 0.1
    beta_bias: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rank", "value_width", "heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if len(set(self.layers)) < len(self.layers) or any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers must be different numbers from 0 on, got {self.layers}")
        if not 0 < self.ridge < math.inf:
            raise ValueError(f"ridge must be positive and finite, got {self.ridge}")
        self._finite("beta_bias")

    def _finite(self, name: str) -> None:
        if not math.isfinite(getattr(self, name)):
            raise ValueError(f"{name} must be finite, got {getattr(self, name)}")

    @property
    def values(self) -> int:
        """Return the width of values and reads."""
        return self.rank if self.value_width is None else self.value_width


@dataclass(frozen=True)
class MesaConfig(RidgeConfig):
    """Configures the Mesa layer (von Oswald et al. 2025, arXiv 2506.05233): ridge regression that forgets.

    Attributes:
        ridge: λ of every channel of every head at the start; learned, and never below `least_ridge`.
        least_ridge: from 0 on.
        forgetting: whether a token first multiplies S and G by a learned γ.
        keep_bias: at the start γ = σ(keep_bias).
        solver: how reads are computed while text is written, where every token meets another G: "exact", a Cholesky
            factorisation for each token, or "cg", conjugate gradients for all tokens at once. A state at rest is always
            read exactly.
        iterations: of conjugate gradients; with Dk of them they are exact but for rounding.

    Raises:
        ValueError: a value is out of range.
    """

    ridge: float = 1.0
    least_ridge: float = 0.25
    forgetting: bool = True
    keep_bias: float = 5.0
    solver: str = "exact"
    iterations: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.least_ridge < self.ridge:
            raise ValueError(
                f"least_ridge must be from 0 to below ridge ({self.ridge}), got {self.least_ridge}"
            )
        self._finite("keep_bias")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be {' or '.join(SOLVERS)}, got '{self.solver}'")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
