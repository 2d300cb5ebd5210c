"""The settings of the readers by low-rank corrections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from memwrite.errors import did_you_mean

ATTENTION = ("q", "k", "v", "o")
PROJECTIONS = (*ATTENTION, "gate", "up", "down")
INITS = ("zero", "random", "base-slice")
SCALES = ("none", "layer", "projection")


@dataclass(frozen=True)
class LoraConfig:
    """Configures δ-mem's reader.

    Attributes:
        projections: which of a layer's "q", "k", "v" and "o" are corrected.
        alpha: corrections are scaled by alpha / Dk.
        normalize: pass queries through tanh and divide each head's by its length, as δ-mem does with queries and keys.
        init: start of the output maps D: "zero", "random" (Kaiming uniform, times `gain`), or "base-slice" (the
            first columns of the model's own weight, each of length `gain`, the others 0).
        gain: of "random" and "base-slice".
        slice_width: columns that "base-slice" takes, never more than Dv or the weight has.
        o_norm: RMS-normalize the correction of "o", with a learned weight.
        o_norm_eps: added to the mean square.
        scale: learn one more factor, sigmoid(raw) · `scale_max`: "none", one per "layer", or one per "projection" of
            each layer.
        scale_init: where the learned factor starts.
        scale_max: what it never reaches.

    Raises:
        ValueError: a value is out of range.
    """

    projections: list[str] = field(default_factory=lambda: ["q", "o"])
    alpha: float = 16.0
    normalize: bool = True
    init: str = "zero"
    gain: float = 0.05
    slice_width: int = 8
    o_norm: bool = False
    o_norm_eps: float = 1e-6
    scale: str = "none"
    scale_init: float = 1.0
    scale_max: float = 2.0

    def __post_init__(self) -> None:
        _check_projections(self.projections, ATTENTION)
        for name in ("alpha", "gain", "o_norm_eps", "scale_init", "scale_max"):
            _check_positive(name, getattr(self, name))
        _check_one_of("init", self.init, INITS)
        _check_one_of("scale", self.scale, SCALES)
        if self.slice_width < 1:
            raise ValueError(f"slice_width must be at least 1, got {self.slice_width}")
        if self.scale_init >= self.scale_max:
            raise ValueError(
                f"scale_init must be below scale_max, got {self.scale_init} and {self.scale_max}"
            )
        if self.o_norm and "o" not in self.projections:
            raise ValueError("o_norm goes with projection 'o'")


@dataclass(frozen=True)
class StaticLoraConfig:
    """Configures ordinary LoRA.

    Attributes:
        rank: r.
        alpha: corrections are scaled by alpha / rank.
        projections: which are corrected of a layer's "q", "k", "v", "o" and of its MLP's "gate" (not every model has
            one), "up", "down".
        layers: of the backbone, from 0; all if empty.

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    projections: list[str] = field(default_factory=lambda: ["q", "o"])
    layers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_projections(self.projections, PROJECTIONS)
        _check_positive("alpha", self.alpha)
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        _check_once("layers", self.layers)


@dataclass(frozen=True)
class PerExampleLoraConfig:
    """Configures LoRA whose matrices are the state.

    Attributes:
        alpha: corrections are scaled by alpha / r, r being the rank of the projection's matrices.
        rank_scaled: False scales them by alpha itself, for states whose rank grows with what they hold (Doc-to-LoRA).

    Raises:
        ValueError: a value is out of range.
    """

    alpha: float = 16.0
    rank_scaled: bool = True

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)


def _check_projections(names: list[str], choices: tuple[str, ...]) -> None:
    if not names:
        raise ValueError(f"projections must name at least one of {', '.join(choices)}")
    for name in names:
        _check_one_of("projections", name, choices)
    _check_once("projections", names)


def _check_once(name: str, values: list[str] | list[int]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must name each one once, got {values}")


def _check_one_of(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} = '{value}': {did_you_mean(value, choices)}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")
