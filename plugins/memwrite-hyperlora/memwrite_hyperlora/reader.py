"""Generative Adapter's reader: the memory is the inner part of a low-rank correction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from memwrite.errors import ContractViolation, InputError
from memwrite.modules.low_rank import LowRank, kaiming
from memwrite.protocols import Backbone, Conditioning, ProjectionDeltas, StaticAdapter
from memwrite.state import MemoryState, StateSpec
from memwrite_hyperlora.config import GenerativeAdapterReaderConfig
from memwrite_hyperlora.normalize import normalized


class GenerativeAdapterReader(nn.Module):
    """Adds (α/Dv)·B S̃ A₁ x to projections, x being the projection's own input and S̃ its head of the state, normalized.

    So it equals a model whose weights are W + (α/Dv)·B S̃ A₁ (arXiv 2411.05877, equation 2). B is 0 at the start.

    Args:
        config: see `GenerativeAdapterReaderConfig`.
        backbone: the model that reads; never changed.
        spec: of the states, with a head for each projection.

    Raises:
        ContractViolation: the states have another number of heads than there are projections, or layers that the backbone
            does not have.
        ConfigError: the backbone has no such projection.
    """

    accepts = frozenset({"matrix"})

    def __init__(
        self, config: GenerativeAdapterReaderConfig, backbone: Backbone, spec: StateSpec
    ) -> None:
        super().__init__()
        if spec.sizes["H"] != len(config.projections):
            raise ContractViolation(
                f"the states have {spec.sizes['H']} heads, but {len(config.projections)} projections are to be corrected, "
                f"each by its own: set heads of the writer, or projections of the reader"
            )
        if not set(spec.layers) <= set(range(backbone.info.layers)):
            raise ContractViolation(
                f"the states are for layers {list(spec.layers)}, but the backbone has the layers 0 to {backbone.info.layers - 1}"
            )
        self._spec, self._norm, self._svd_rank = spec, config.norm, config.svd_rank
        self._names, self._scale = config.projections, config.alpha / spec.sizes["Dv"]
        self.layers = nn.ModuleDict(
            {str(n): _Maps(config.projections, backbone, n, spec) for n in spec.layers}
        )

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Let each row's state correct the projections.

        Raises:
            InputError: the state has other shapes or layers than the reader was built for.
        """
        if (
            dict(state.spec.shapes) != dict(self._spec.shapes)
            or state.spec.layers != self._spec.layers
        ):
            raise InputError(
                f"the reader was built for states of shapes {dict(self._spec.shapes)}, but this one has "
                f"{dict(state.spec.shapes)}"
            )
        return Conditioning(
            corrections={
                layer: StaticAdapter(
                    {"S": normalized(state.layer(layer)["S"], self._norm, self._svd_rank)},
                    partial(self._deltas, layer),
                )
                for layer in self._spec.layers
            }
        )

    def _deltas(self, layer: int, tensors: Mapping[str, Tensor], _: Tensor) -> ProjectionDeltas:
        maps = cast(_Maps, self.layers[str(layer)])
        return {
            name: LowRank(tensors["S"][:, head] @ maps.A[name], maps.B[name], self._scale)
            for head, name in enumerate(self._names)
        }


class _Maps(nn.Module):
    """A₁ (Dk, in) and B (out, Dv) of every corrected projection of one layer."""

    def __init__(self, names: list[str], backbone: Backbone, layer: int, spec: StateSpec) -> None:
        super().__init__()
        dtype = backbone.info.state_dtype
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        for name in names:
            outputs, inputs = backbone.projection(layer, name).shape
            self.A[name] = nn.Parameter(kaiming(spec.sizes["Dk"], inputs, dtype))
            self.B[name] = nn.Parameter(torch.zeros(outputs, spec.sizes["Dv"], dtype=dtype))
