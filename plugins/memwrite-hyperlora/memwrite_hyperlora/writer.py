"""Generative Adapter's writer: sums of outer products of what every layer receives."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.errors import InputError
from memwrite.modules.layers import chosen_layers
from memwrite.modules.low_rank import kaiming
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_hyperlora.config import GenerativeAdapterConfig
from memwrite_hyperlora.stream import received, windows

#: Added to the mean square of hidden states, as the authors do.
EPS = 1e-6


class GenerativeAdapterWriter(nn.Module):
    """Adds S = Σ_t v_t k_tᵀ with k = A₂ h and v = A₃ h, h being what the layer receives at token t, RMS-normalized.

    Chen et al. 2024 (arXiv 2411.05877), equations 3 to 5. A window of the context is read by itself: the model sees neither
    the memory nor other windows. So what it adds depends on nothing else, contexts may come in any order, two states merge
    by addition, and a context can be taken out again by subtraction: a `MergingWriter` and a `DeletingWriter`.

    Parameters: `norm` (L, H, D), `keys` (L, H, Dk, D) and `values` (L, H, Dv, D).

    Args:
        config: see `GenerativeAdapterConfig`.
        backbone: the model that reads the context; never changed.

    Raises:
        ConfigError: the backbone has no such layer.
    """

    reserved_positions = 0

    def __init__(self, config: GenerativeAdapterConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        layers = chosen_layers(config.layers, info)
        width, dtype = info.hidden_size, info.state_dtype
        self._backbone, self._window = backbone, config.window
        matrices = len(layers), config.heads
        self.norm = nn.Parameter(torch.ones(*matrices, width, dtype=dtype))
        self.keys, self.values = (
            nn.Parameter(
                torch.stack([kaiming(rows, width, dtype) for _ in range(prod(matrices))]).view(
                    *matrices, rows, width
                )
            )
            for rows in (config.keys, config.rank)
        )
        shape = (*matrices, config.rank, config.keys)
        self.spec = StateSpec("matrix", {"S": shape}, layers, dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return memories of nothing: zeros."""
        return self.spec.zeros(batch_size, self.norm.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Add what `context` says."""
        return WriteOutput(_plus(state, self._sums(context)))

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Subtract what `context` says.

        Raises:
            InputError: the state has read nothing. That it has read something else does not show in a sum.
        """
        empty = context.mask.any(1) & ~state["S"].flatten(1).any(1)
        if bool(empty.any()):
            rows = empty.nonzero().flatten().tolist()
            raise InputError(f"the memory of row(s) {rows} has read nothing that it could forget")
        return WriteOutput(_plus(state, -self._sums(context)))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Add the sums."""
        return _plus(first, second["S"])

    def _sums(self, context: PackedTokens) -> Tensor:
        """Return the S (B, L, H, Dv, Dk) of the context alone, in float64."""
        ids, mask, rows = windows(context, self._window)
        heard = received(self._backbone, ids, self.spec.layers)
        products = torch.stack(
            [self._products(n, hidden, mask) for n, hidden in enumerate(heard)], 1
        )
        empty = products.new_zeros(len(context.ids), *products.shape[1:])
        return empty.index_add(0, rows, products)

    def _products(self, index: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return Σ_t v_t k_tᵀ (B, H, Dv, Dk) of one layer's hidden states (B, T, D)."""
        normal = F.rms_norm(hidden.to(self.norm.dtype), hidden.shape[-1:], eps=EPS)
        weighed = normal[:, :, None] * self.norm[index]
        keys, values = (
            torch.einsum("bthd,hrd->bhtr", weighed, maps[index])
            for maps in (self.keys, self.values)
        )
        keys = keys.masked_fill(~mask[:, None, :, None], 0)
        return values.double().mT @ keys.double()


def _plus(state: MemoryState, more: Tensor) -> MemoryState:
    total = (state["S"].double() + more.double()).to(state["S"].dtype)
    return replace(state, tensors={"S": total})
