"""Doc-to-LoRA's hypernetwork: the features of a chunk in every layer become that layer's low-rank weights."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite_hyperlora.config import DocToLoraConfig
from memwrite_hyperlora.perceiver import Perceiver

#: Of every layer norm.
EPS = 1e-5


class ResidualBlock(nn.Module):
    """x + LN(W₂ silu(W₁ LN(x) + b₁) + b₂), with matrices of each layer and norms that they share."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        inner = 4 * width
        self.before, self.after = (nn.LayerNorm(width, EPS) for _ in range(2))
        self.up, self.down = (
            nn.Parameter(torch.empty(layers, *shape).uniform_(-1, 1) / sqrt(shape[0]))
            for shape in ((width, inner), (inner, width))
        )
        self.up_bias = nn.Parameter(torch.zeros(layers, inner))
        self.down_bias = nn.Parameter(torch.zeros(layers, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, L, M, width) to the same."""
        inner = F.silu(self.before(inputs) @ self.up + self.up_bias[:, None])
        added: Tensor = self.after(inner @ self.down + self.down_bias[:, None])
        return inputs + added


class Hypernetwork(nn.Module):
    """Features of L layers -> A (r, in) and B (out, r) of each layer's projections (arXiv 2602.15902, section 3).

    Every layer's features go through the same Perceiver; each of its vectors, of length 1, is mapped by the layer's head to one
    row of A and one column of B, which are scaled by s_A and s_B. s_B is 0 at the start, and so is the learned
    B of the bias, a correction that every memory has besides.

    Args:
        config: sizes.
        features: D.
        layers: L.
        shapes: projection -> (out, in), the same in every layer; by name in alphabetical order.
    """

    def __init__(
        self,
        config: DocToLoraConfig,
        features: int,
        layers: int,
        shapes: Mapping[str, tuple[int, int]],
    ) -> None:
        super().__init__()
        rank, width = config.rank, config.width
        self._rank, self._shapes = rank, dict(shapes)
        self.perceiver = Perceiver(config, features, len(shapes) * rank)
        self.residual = nn.Sequential(
            *(ResidualBlock(layers, width) for _ in range(config.residual_blocks))
        )
        widest = max(sum(shape) for shape in shapes.values())
        spread = 0.5 / sqrt(width + widest * rank)
        parts = (
            {n: spread * torch.randn(layers, width, sum(shape)) for n, shape in shapes.items()},
            {n: torch.ones(layers, rank) for n in shapes},
            {n: torch.zeros(layers, rank) for n in shapes},
            {
                n: 0.2 / sqrt(rank * shape[1]) * torch.randn(layers, rank, shape[1])
                for n, shape in shapes.items()
            },
            {n: torch.zeros(layers, rank, shape[0]) for n, shape in shapes.items()},
        )
        self.head, self.scale_A, self.scale_B, self.bias_A, self.bias_B = (
            nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in part.items()})
            for part in parts
        )

    def forward(self, features: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Make the corrections of chunks.

        Args:
            features: (N, L, T, D).
            mask: (N, T) bool, True where a token is real.

        Returns:
            "A.P" (N, L, r, in) and "B.P" (N, L, r, out) for every projection P.
        """
        chunks, layers = features.shape[:2]
        repeated = mask[:, None].expand(-1, layers, -1).flatten(0, 1)
        vectors = self.perceiver(features.flatten(0, 1), repeated).unflatten(0, (chunks, layers))
        units = cast(Tensor, self.residual(vectors))
        units = units / units.norm(dim=-1, keepdim=True)
        made = {}
        for (name, shape), own in zip(
            self._shapes.items(), units.split(self._rank, 2), strict=True
        ):
            down, up = (own @ self.head[name]).split([shape[1], shape[0]], -1)
            made[f"A.{name}"] = down * self.scale_A[name][..., None]
            made[f"B.{name}"] = up * self.scale_B[name][..., None]
        return made

    @property
    def bias(self) -> dict[str, Tensor]:
        """Return the learned correction: "A.P" (L, r, in) and "B.P" (L, r, out)."""
        named = {f"A.{name}": tensor for name, tensor in self.bias_A.items()}
        return named | {f"B.{name}": tensor for name, tensor in self.bias_B.items()}
