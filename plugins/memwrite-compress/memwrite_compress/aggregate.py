"""MAC's reader (Tack et al. 2024, arXiv 2403.04317): what is asked aggregates a bank into what changes the model.

The authors encode the whole question by another model, aggregate the bank once, and put the result in front of every
layer as key-values. A causal model does not know where a question ends, so here every position aggregates for itself, by the
hidden state that the layer's attention receives, and the result is added to what this attention gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.errors import InputError
from memwrite.modules.layers import chosen_layers
from memwrite.protocols import Backbone, Conditioning, ProjectionDeltas, StaticAdapter
from memwrite.state import MemoryState, StateSpec
from memwrite_compress.config import at_least
from memwrite_compress.mac import BANK


@dataclass(frozen=True)
class AggregateConfig:
    """Configures the aggregation of a bank.

    Attributes:
        blocks: of cross-attention to the bank, one after the other, the same for all layers.
        heads: of each block.
        head_dim: width of a head's keys and values.
        layers: of the backbone that are changed, from 0; by default all of them.
        init_std: standard deviation, at the start, of the maps from what is aggregated to the layers.

    Raises:
        ValueError: a value is out of range.
    """

    blocks: int = 2
    heads: int = 4
    head_dim: int = 32
    layers: list[int] = field(default_factory=list)
    init_std: float = 0.02

    def __post_init__(self) -> None:
        at_least(1, self, "blocks", "heads", "head_dim")
        if len(set(self.layers)) < len(self.layers) or any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers must be different numbers from 0 on, got {self.layers}")
        if not 0 <= self.init_std < math.inf:
            raise ValueError(f"init_std must not be negative, got {self.init_std}")


class Block(nn.Module):
    """Cross-attention from what is asked to a bank, and an MLP, each behind a layer norm and beside a residual."""

    def __init__(self, width: int, heads: int, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_dim
        self.norm, self.bank_norm, self.mlp_norm = (nn.LayerNorm(width, dtype=dtype) for _ in "qkm")
        self.query, self.key, self.value = (
            nn.Linear(width, inner, bias=False, dtype=dtype) for _ in "qkv"
        )
        self.out = nn.Linear(inner, width, dtype=dtype)
        self.up = nn.Linear(width, min(width, inner), dtype=dtype)
        self.down = nn.Linear(min(width, inner), width, dtype=dtype)

    def forward(self, asked: Tensor, bank: Tensor, mask: Tensor) -> Tensor:
        """Let (B, T, D) attend to a bank (B, M, D), of which some (B, M) are real, at least one in every row."""
        bank = self.bank_norm(bank)
        q, k, v = (
            torch.unflatten(x, 2, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(self.norm(asked)), self.key(bank), self.value(bank))
        )
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        asked = asked + self.out(found.transpose(1, 2).flatten(2))
        result: Tensor = asked + self.down(F.gelu(self.up(self.mlp_norm(asked))))
        return result


class AggregateReader(nn.Module):
    """Adds to the attention of each layer what its hidden states find in a bank of vectors, in whatever order these are.

    Args:
        config: see `AggregateConfig`.
        backbone: the model that reads; never changed.
        spec: of the states.

    Raises:
        ConfigError: the backbone has no such layer.
    """

    accepts = frozenset({BANK.name})

    def __init__(self, config: AggregateConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        info = backbone.info
        self._width = width = info.hidden_size
        dtype = info.state_dtype
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.head_dim, dtype) for _ in range(config.blocks)
        )
        self.maps = nn.ModuleDict()
        for layer in chosen_layers(config.layers, info):
            added = nn.Linear(width, width, bias=False, dtype=dtype)
            nn.init.normal_(added.weight, std=config.init_std)
            self.maps[str(layer)] = added

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Return what each layer adds to its attention; nothing in a row whose bank is empty.

        Raises:
            InputError: the bank was written for a model of another width.
        """
        memory, mask = state["memory"], state["mask"]
        if memory.shape[-1] != self._width:
            raise InputError(
                f"this bank is of vectors of {memory.shape[-1]} numbers, but the model's have {self._width}: it was written for "
                f"another model"
            )
        # One vector that is no one's lets an empty bank be attended to as any other.
        tensors = {"bank": F.pad(memory, (0, 0, 0, 1)), "mask": mask, "empty": ~mask.any(1)}
        return Conditioning(
            corrections={
                int(layer): StaticAdapter(tensors, partial(self._additions, layer))
                for layer in self.maps
            }
        )

    def _additions(
        self, layer: str, tensors: Mapping[str, Tensor], hidden: Tensor
    ) -> ProjectionDeltas:
        bank, empty = tensors["bank"], tensors["empty"]
        found = hidden.to(bank.dtype)
        mask = torch.cat([tensors["mask"], empty[:, None]], 1)
        for block in self.blocks:
            found = cast(Tensor, block(found, bank, mask))
        added: Tensor = self.maps[layer](found)
        return {"o": added.masked_fill(empty[:, None, None], 0)}
