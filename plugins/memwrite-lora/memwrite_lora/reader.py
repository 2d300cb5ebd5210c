"""δ-mem's reader: a state answers a layer's queries, and the answers correct the layer's projections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import repeat
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.errors import ContractViolation
from memwrite.modules.low_rank import kaiming
from memwrite.plugins.pairs import RECALL
from memwrite.protocols import Backbone, Conditioning, ProjectionDeltas, StaticAdapter
from memwrite.state import KINDS, MemoryState, Prepare, Recall, StateSpec
from memwrite_lora.checks import check_layers, check_state
from memwrite_lora.config import ATTENTION, LoraConfig
from memwrite_lora.initial import output_map


class LoraReader(nn.Module):
    """Reads r_t = recall(state, q_t) at every position t and adds (α/Dk)·D_h r_t to projection h (δ-mem, arXiv 2605.12357).

    The query q_t = L2(tanh(W_q x_t)) comes from the layer's hidden states x, for the correction of "o" too. Each of the
    state's layers has its own W_q (H·Dk, D) and D_h (width of h, H·Dv). The kind of the state says how it answers: a
    "matrix" state by r_t = S q_t, as in the paper, whose factor α/r this is where Dv = Dk = r.

    Args:
        config: see `LoraConfig`.
        backbone: the model that reads; never changed.
        spec: of the states, of any kind that has a recall; the axes H, Dk and Dv of the kind give the sizes.

    Raises:
        ContractViolation: the state's layers are not the backbone's, or its kind has no recall.
    """

    accepts = frozenset({RECALL})

    def __init__(self, config: LoraConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        check_layers(spec, backbone.info)
        self._spec = spec
        self._recall, self._prepare = _recall(spec)
        heads, values, keys = (spec.sizes[axis] for axis in ("H", "Dv", "Dk"))
        self.layers = nn.ModuleDict(
            {
                str(layer): LayerLora(config, backbone, layer, heads, values, keys)
                for layer in spec.layers
            }
        )

    def queries(self, layer: int, hidden: Tensor) -> Tensor:
        """Map hidden (B, T, D) to queries (B, T, H, Dk)."""
        return self._layer(layer).queries(hidden)

    def correct(self, layer: int, reads: Tensor) -> ProjectionDeltas:
        """Map reads (B, T, H, Dv) to additions (B, T, width of h) to each projection h."""
        return self._layer(layer).correct(reads)

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Make the corrections of a state at rest: every position reads the same tensors.

        Raises:
            InputError: the state has other shapes or layers than the reader was built for.
        """
        check_state(state, self._spec)
        return Conditioning(
            corrections={
                layer: StaticAdapter(
                    self._prepare(state.layer(layer)), partial(self._additions, layer)
                )
                for layer in self._spec.layers
            }
        )

    def _additions(
        self, layer: int, tensors: Mapping[str, Tensor], hidden: Tensor
    ) -> ProjectionDeltas:
        queries = self.queries(layer, hidden)
        return self.correct(layer, self._recall(tensors, queries))

    def _layer(self, layer: int) -> LayerLora:
        return cast(LayerLora, self.layers[str(layer)])


def _recall(spec: StateSpec) -> tuple[Recall, Prepare]:
    kind = KINDS.get(spec.kind)
    if kind is None or kind.recall is None:
        raise ContractViolation(
            f"a '{spec.kind}' state does not answer queries: declare its StateKind with a recall (hook memwrite_kinds)"
        )
    return kind.recall, kind.prepare or _as_it_is


def _as_it_is(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return tensors


class LayerLora(nn.Module):
    """The parameters of one layer, in float32 (float64 for a float64 model).

    Parameters: `query` (H·Dk, D) and, for each corrected projection, `delta.{q,k,v,o}` (width, H·Dv). Where they are
    configured, `o_norm` (D,), and `scale` (1,) or one per corrected projection, in the order q, k, v, o.
    """

    def __init__(
        self, config: LoraConfig, backbone: Backbone, layer: int, heads: int, values: int, keys: int
    ) -> None:
        super().__init__()
        width = backbone.info.hidden_size
        dtype = backbone.info.state_dtype
        self._config, self._heads, self._keys = config, heads, keys
        self._factor = config.alpha / keys
        self.query = nn.Parameter(kaiming(heads * keys, width, dtype))
        self.delta = nn.ParameterDict()
        for name in ATTENTION:
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
        """Map hidden (B, T, D) to queries (B, T, H, Dk)."""
        projected = F.linear(hidden.to(self.query.dtype), self.query)
        heads = projected.reshape(*projected.shape[:-1], self._heads, self._keys)
        return F.normalize(heads.tanh(), dim=-1, eps=1e-6) if self._config.normalize else heads

    def correct(self, reads: Tensor) -> ProjectionDeltas:
        """Map reads (B, T, H, Dv) to additions (B, T, width) by projection."""
        flat = reads.to(self.query.dtype).flatten(2)
        deltas = {
            name: F.linear(flat, weight) * factor
            for (name, weight), factor in zip(self.delta.items(), self._factors(), strict=True)
        }
        if self.o_norm is not None:
            eps = self._config.o_norm_eps
            deltas["o"] = F.rms_norm(deltas["o"], self.o_norm.shape, self.o_norm, eps)
        return deltas

    def _factors(self) -> Iterable[Tensor | float]:
        """Return the factor of every corrected projection."""
        if self.scale is None:
            return repeat(self._factor, len(self.delta))
        learned = self.scale.sigmoid() * self._config.scale_max
        return (self._factor * learned).expand(len(self.delta))
