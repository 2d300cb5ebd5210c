"""δ-mem's reader: a matrix state's answers to a layer's queries, as low-rank corrections of its projections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import repeat
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.protocols import Backbone, Conditioning, ProjectionDeltas, StaticAdapter
from memwrite.state import MemoryState, StateSpec
from memwrite_lora.checks import check_layers, check_state
from memwrite_lora.config import PROJECTIONS, LoraConfig
from memwrite_lora.initial import kaiming, output_map


class LoraReader(nn.Module):
    """Reads r_t = S q_t at every position t and adds (α/Dk)·D_h r_t to projection h (δ-mem, arXiv 2605.12357).

    The query q_t = L2(tanh(W_q x_t)) comes from the layer's hidden states x, for the correction of "o" too. Each of the
    state's layers has its own S (H, Dv, Dk), W_q (H·Dk, D) and D_h (width of h, H·Dv). With Dv = Dk = r the factor is
    the paper's α/r.

    Args:
        config: see `LoraConfig`.
        backbone: the model that reads; never changed.
        spec: of the states, with shapes {"S": (L, H, Dv, Dk)}.

    Raises:
        ContractViolation: the state's layers are not the backbone's.
    """

    accepts = frozenset({"matrix"})

    def __init__(self, config: LoraConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        check_layers(spec, backbone.info)
        self._spec = spec
        _, heads, values, keys = spec.shapes["S"]
        self.layers = nn.ModuleDict(
            {
                str(layer): LayerLora(config, backbone, layer, heads, values, keys)
                for layer in spec.layers
            }
        )

    def queries(self, layer: int, hidden: Tensor) -> Tensor:
        """hidden (B, T, D) -> queries (B, T, H, Dk)."""
        return self._layer(layer).queries(hidden)

    def correct(self, layer: int, reads: Tensor) -> ProjectionDeltas:
        """reads (B, T, H, Dv) -> additions (B, T, width of h) to each projection h."""
        return self._layer(layer).correct(reads)

    def condition(self, state: MemoryState, /) -> Conditioning:
        """The corrections of a state at rest: every position reads the same S.

        Raises:
            InputError: the state has other shapes or layers than the reader was built for.
        """
        check_state(state, self._spec)
        return Conditioning(
            corrections={
                layer: StaticAdapter({"S": state["S"][:, index]}, partial(self._additions, layer))
                for index, layer in enumerate(self._spec.layers)
            }
        )

    def _additions(
        self, layer: int, tensors: Mapping[str, Tensor], hidden: Tensor
    ) -> ProjectionDeltas:
        queries = self.queries(layer, hidden)
        reads = torch.einsum("bhvk,bthk->bthv", tensors["S"].to(queries.dtype), queries)
        return self.correct(layer, reads)

    def _layer(self, layer: int) -> LayerLora:
        return cast(LayerLora, self.layers[str(layer)])


class LayerLora(nn.Module):
    """What the reader learns for one layer, in float32 (float64 for a float64 model).

    Parameters: `query` (H·Dk, D) and, for each corrected projection, `delta.{q,k,v,o}` (width, H·Dv). Where they are
    asked for, `o_norm` (D,), and `scale` (1,) or one per corrected projection, in the order q, k, v, o.
    """

    def __init__(
        self, config: LoraConfig, backbone: Backbone, layer: int, heads: int, values: int, keys: int
    ) -> None:
        super().__init__()
        width = backbone.info.hidden_size
        dtype = torch.promote_types(backbone.info.dtype, torch.float32)
        self._config, self._heads, self._keys = config, heads, keys
        self._factor = config.alpha / keys
        self.query = nn.Parameter(kaiming(heads * keys, width, dtype))
        self.delta = nn.ParameterDict()
        for name in PROJECTIONS:
            if name in config.projections:
                weight = backbone.projection(layer, name).detach()
                self.delta[name] = nn.Parameter(output_map(config, weight, heads, values, dtype))
        self.o_norm = nn.Parameter(torch.ones(width, dtype=dtype)) if config.o_norm else None
        self.scale = None
        if config.scale != "none":
            count = 1 if config.scale == "layer" else len(self.delta)
            raw = math.log(config.scale_init / (config.scale_max - config.scale_init))
            self.scale = nn.Parameter(torch.full((count,), raw, dtype=dtype))

    def queries(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, D) -> queries (B, T, H, Dk)."""
        projected = F.linear(hidden.to(self.query.dtype), self.query)
        heads = projected.reshape(*projected.shape[:-1], self._heads, self._keys)
        return F.normalize(heads.tanh(), dim=-1, eps=1e-6) if self._config.normalize else heads

    def correct(self, reads: Tensor) -> ProjectionDeltas:
        """reads (B, T, H, Dv) -> additions (B, T, width) by projection."""
        flat = reads.to(self.query.dtype).flatten(2)
        found = {
            name: F.linear(flat, weight) * factor
            for (name, weight), factor in zip(self.delta.items(), self._factors(), strict=True)
        }
        if self.o_norm is not None:
            eps = self._config.o_norm_eps
            found["o"] = F.rms_norm(found["o"], self.o_norm.shape, self.o_norm, eps)
        return found

    def _factors(self) -> Iterable[Tensor | float]:
        """One for every corrected projection."""
        if self.scale is None:
            return repeat(self._factor, len(self.delta))
        learned = self.scale.sigmoid() * self._config.scale_max
        return (self._factor * learned).expand(len(self.delta))
