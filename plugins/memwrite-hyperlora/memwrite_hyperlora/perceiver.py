"""A Perceiver: a few learned latents that look at a sequence, block after block."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite_hyperlora.config import DocToLoraConfig

#: Of every RMS norm.
EPS = 1e-6


class GatedMlp(nn.Module):
    """W_down (silu(W_gate x) ⊙ W_up x)."""

    def __init__(self, width: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, outputs, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., width) to (..., outputs)."""
        mapped: Tensor = self.down(F.silu(self.gate(inputs)) * self.up(inputs))
        return mapped


class PerceiverBlock(nn.Module):
    """Latents attend to the sequence, then pass through an MLP; a norm before and after each of both."""

    def __init__(self, config: DocToLoraConfig) -> None:
        super().__init__()
        width, own = config.width, config.heads * config.head_width
        shared = config.kv_heads * config.head_width
        self._heads, self._grouped = config.heads, config.heads != config.kv_heads
        self._kv_heads = config.kv_heads
        self.query = nn.Linear(width, own, bias=False)
        self.key, self.value = (nn.Linear(width, shared, bias=False) for _ in range(2))
        self.out = nn.Linear(own, width, bias=False)
        self.mlp = GatedMlp(width, 4 * width, width)
        names = ("latents", "sequence", "attended", "before_mlp", "after_mlp")
        self.norms = nn.ModuleDict({name: nn.RMSNorm(width, EPS) for name in names})

    def forward(self, latents: Tensor, sequence: Tensor, mask: Tensor | None) -> Tensor:
        """Return the latents (N, M, width) that have looked at a sequence (N, T, width), where `mask` (N, T) is True."""
        norms = self.norms
        seen = norms["sequence"](sequence)
        queries = self.query(norms["latents"](latents)).unflatten(-1, (self._heads, -1))
        keys, values = (m(seen).unflatten(-1, (self._kv_heads, -1)) for m in (self.key, self.value))
        heard = F.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2),
            attn_mask=None if mask is None else mask[:, None, None], enable_gqa=self._grouped,
        )  # fmt: skip
        latents = latents + norms["attended"](self.out(heard.transpose(1, 2).flatten(2)))
        mapped: Tensor = norms["after_mlp"](self.mlp(norms["before_mlp"](latents)))
        return latents + mapped


class Resampler(nn.Module):
    """Learned latents (M, width) that go through blocks, and a norm."""

    def __init__(self, config: DocToLoraConfig, latents: int, blocks: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, config.width))
        self.blocks = nn.ModuleList(PerceiverBlock(config) for _ in range(blocks))
        self.norm = nn.RMSNorm(config.width, EPS)

    def forward(self, sequence: Tensor, mask: Tensor | None) -> Tensor:
        """Return (N, M, width) of a sequence (N, T, width)."""
        latents = self.latents.expand(len(sequence), -1, -1)
        for block in self.blocks:
            latents = cast(PerceiverBlock, block)(latents, sequence, mask)
        normal: Tensor = self.norm(latents)
        return normal


class Perceiver(nn.Module):
    """Features of one layer -> latents -> one vector for each rank of each corrected projection.

    Args:
        config: sizes.
        features: D, width of the features.
        outputs: how many vectors.
    """

    def __init__(self, config: DocToLoraConfig, features: int, outputs: int) -> None:
        super().__init__()
        self.project = GatedMlp(features, 4 * features, config.width)
        self.encoder = Resampler(config, config.latents, config.blocks)
        self.decoder = Resampler(config, outputs, 1)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Map features (N, T, D), where `mask` (N, T) is True, to (N, outputs, width)."""
        vectors: Tensor = self.decoder(self.encoder(self.project(features), mask), None)
        return vectors
