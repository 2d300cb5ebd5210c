"""Readers by corrections B A x: learned ones, the same for every memory, or the memory itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from memwrite.errors import ConfigError, ContractViolation
from memwrite.modules.low_rank import LowRank, stacked_factors
from memwrite.protocols import Backbone, Conditioning, ProjectionDeltas, StaticAdapter
from memwrite.state import MemoryState, StateSpec
from memwrite_lora.checks import check_layers, check_state
from memwrite_lora.config import PROJECTIONS, PerExampleLoraConfig, StaticLoraConfig


class StaticLoraReader(nn.Module):
    """Adds (α/r)·B A x to projections, x being the projection's own input (LoRA, arXiv 2106.09685, equation 3).

    The control without memory. Its parameters have the names and shapes of a "lowrank" state: `A.q` (L, r, Din),
    `B.q` (L, Dout, r) and so on, in float32 (float64 for a float64 model).

    Args:
        config: see `StaticLoraConfig`.
        backbone: the model that is corrected; never changed.
        spec: of the states, which are empty.

    Raises:
        ConfigError: the backbone has no such layer or projection.
    """

    accepts = frozenset({"empty"})

    def __init__(self, config: StaticLoraConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        info = backbone.info
        self._layers = config.layers or list(range(info.layers))
        for layer in self._layers:
            if not 0 <= layer < info.layers:
                raise ConfigError(
                    f"reader.params.layers names layer {layer}, but the backbone has the layers 0 to "
                    f"{info.layers - 1}"
                )
        self._scales = {
            n: config.alpha / config.rank for n in PROJECTIONS if n in config.projections
        }
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        for name in self._scales:
            outputs, inputs = backbone.projection(self._layers[0], name).shape
            self.A[name], self.B[name] = stacked_factors(
                len(self._layers), outputs, inputs, config.rank, info.state_dtype
            )

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Make the same corrections for every row, whatever the state."""
        return Conditioning(
            corrections={
                layer: StaticAdapter({}, partial(self._additions, index))
                for index, layer in enumerate(self._layers)
            }
        )

    def _additions(self, index: int, _: Mapping[str, Tensor], hidden: Tensor) -> ProjectionDeltas:
        tensors = {
            f"{side}.{name}": stacked[index]
            for side, pair in (("A", self.A), ("B", self.B))
            for name, stacked in pair.items()
        }
        return _deltas(self._scales, tensors, hidden)


class PerExampleLoraReader(nn.Module):
    """Adds (α/r)·B A x, or α·B A x, to the projections that a "lowrank" state has matrices for, each row its own.

    It has no parameters.

    Args:
        config: see `PerExampleLoraConfig`.
        backbone: the model that reads; never changed.
        spec: of the states, with shapes {"A.q": (L, r, Din), "B.q": (L, Dout, r), ...}.

    Raises:
        ContractViolation: the shapes are not those of low-rank corrections of the backbone.
        ConfigError: the backbone has no such projection.
    """

    accepts = frozenset({"lowrank"})

    def __init__(self, config: PerExampleLoraConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        check_layers(spec, backbone.info)
        names = [name for name in PROJECTIONS if {f"A.{name}", f"B.{name}"} & spec.shapes.keys()]
        for name in names:
            _check_pair(spec, name, backbone)
        self._spec = spec
        self._scales = {
            name: config.alpha / (spec.shapes[f"A.{name}"][1] if config.rank_scaled else 1)
            for name in names
        }

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Make each row's own corrections.

        Raises:
            InputError: the state has other shapes or layers than the reader was built for.
        """
        check_state(state, self._spec)
        return Conditioning(
            corrections={
                layer: StaticAdapter(state.layer(layer), partial(_deltas, self._scales))
                for layer in self._spec.layers
            }
        )


def _check_pair(spec: StateSpec, name: str, backbone: Backbone) -> None:
    down, up = spec.shapes.get(f"A.{name}"), spec.shapes.get(f"B.{name}")
    if down is None or up is None:
        present, missing = ("B", "A") if down is None else ("A", "B")
        raise ContractViolation(
            f"a 'lowrank' state has '{present}.{name}' but no '{missing}.{name}': both are needed"
        )
    if down[1] != up[2] or not down[1]:
        raise ContractViolation(
            f"'A.{name}' {down} and 'B.{name}' {up} of a 'lowrank' state should be (L, r, Din) and "
            f"(L, Dout, r) with one rank r of at least 1"
        )
    for layer in spec.layers:
        width = tuple(backbone.projection(layer, name).shape)
        if (up[1], down[2]) != width:
            raise ContractViolation(
                f"'A.{name}' and 'B.{name}' of a 'lowrank' state correct a projection of shape "
                f"{(up[1], down[2])}, but the backbone's '{name}' in layer {layer} has {width}"
            )


def _deltas(
    scales: Mapping[str, float], tensors: Mapping[str, Tensor], _: Tensor
) -> dict[str, LowRank]:
    """Return s·B A of every projection, as functions of its own input."""
    return {
        name: LowRank(tensors[f"A.{name}"], tensors[f"B.{name}"], scale)
        for name, scale in scales.items()
    }
