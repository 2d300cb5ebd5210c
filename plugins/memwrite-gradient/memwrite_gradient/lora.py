"""Low-rank corrections of the attention projections that act while writing, and only then."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from memwrite.protocols import BackboneInfo, ProjectionDeltas, StaticAdapter


class WriteLora(nn.Module):
    """Adds (α/r)·B A x to the outputs of q, k, v and o in every layer (LoRA, arXiv 2106.09685, equation 3).

    Args:
        info: of the backbone.
        rank: r.
        alpha: α.
        dtype: of the parameters.
    """

    def __init__(self, info: BackboneInfo, rank: int, alpha: float, dtype: torch.dtype) -> None:
        super().__init__()
        query, key = info.heads * info.head_dim, info.kv_heads * info.head_dim
        wide = info.hidden_size
        self._scale = alpha / rank
        self._layers = info.layers
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, (inputs, outputs) in {
            "q": (wide, query),
            "k": (wide, key),
            "v": (wide, key),
            "o": (query, wide),
        }.items():
            down = torch.empty(info.layers, rank, inputs, dtype=dtype)
            bound = 1 / math.sqrt(inputs)
            self.down[name] = nn.Parameter(down.uniform_(-bound, bound))
            self.up[name] = nn.Parameter(torch.zeros(info.layers, outputs, rank, dtype=dtype))

    def corrections(self) -> dict[int, StaticAdapter]:
        """One for every layer; the same for every row."""
        return {layer: StaticAdapter({}, self._of(layer)) for layer in range(self._layers)}

    def _of(self, layer: int) -> _Add:
        return _Add(
            {name: down[layer] for name, down in self.down.items()},
            {name: up[layer] * self._scale for name, up in self.up.items()},
        )


class _Add:
    """A pure function of the hidden states."""

    def __init__(self, down: Mapping[str, Tensor], up: Mapping[str, Tensor]) -> None:
        self._down, self._up = down, up

    def __call__(self, _: Mapping[str, Tensor], hidden: Tensor) -> ProjectionDeltas:
        return {
            **{name: self._product(name, hidden) for name in ("q", "k", "v")},
            "o": lambda inputs: self._product("o", inputs),
        }

    def _product(self, name: str, inputs: Tensor) -> Tensor:
        return inputs.to(self._down[name].dtype) @ self._down[name].mT @ self._up[name].mT
