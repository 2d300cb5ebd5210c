"""Low-rank corrections of the attention projections that act while writing, and only then."""

from __future__ import annotations

import torch
from torch import nn

from memwrite.modules.low_rank import LowRank, stacked_factors
from memwrite.protocols import BackboneInfo, StaticAdapter


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
            self.down[name], self.up[name] = stacked_factors(
                info.layers, outputs, inputs, rank, dtype
            )

    def corrections(self) -> dict[int, StaticAdapter]:
        """Make an adapter for every layer; it is the same for every row."""
        return {layer: self._adapter(layer) for layer in range(self._layers)}

    def _adapter(self, layer: int) -> StaticAdapter:
        deltas = {
            name: LowRank(down[layer], self.up[name][layer], self._scale)
            for name, down in self.down.items()
        }
        return StaticAdapter({}, lambda _tensors, _hidden: deltas)
