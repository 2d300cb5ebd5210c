"""Loops that compute what the writers and readers compute, token by token: what they are held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def outer_products(hidden: Tensor, norm: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return Generative Adapter's S = Σ_t (A₃ h_t)(A₂ h_t)ᵀ of one layer and head.

    Args:
        hidden: (T, D), what the layer receives.
        norm: (D,), the weight of the RMS norm.
        keys: A₂ (Dk, D).
        values: A₃ (Dv, D).
    """
    total = hidden.new_zeros(len(values), len(keys))
    for token in hidden:
        normal = token / math.sqrt(sum(float(x) ** 2 for x in token) / len(token) + 1e-6) * norm
        for i, row in enumerate(values):
            for j, column in enumerate(keys):
                total[i, j] += (row @ normal) * (column @ normal)
    return total


def adapter_weight(
    matrix: Tensor, inner: Tensor, outer: Tensor, alpha: float, norm: str, rank: int
) -> Tensor:
    """Return ΔW = (α/Dv)·B S̃ A₁ (out, in) of one layer and head.

    Args:
        matrix: S (Dv, Dk).
        inner: A₁ (Dk, in).
        outer: B (out, Dv).
        alpha: α.
        norm: "frobenius", "spectral" or "svd".
        rank: of "svd".
    """
    sizes, vectors = torch.linalg.eigh(matrix.T @ matrix)
    if norm == "frobenius":
        scaled = matrix / math.sqrt(float(sizes.sum()) + 1e-6)
    elif norm == "spectral":
        scaled = matrix / (math.sqrt(float(sizes.max())) + 1e-6)
    else:
        scaled = torch.zeros_like(matrix)
        # U Vᵀ, one singular value after the other: u = S v / σ.
        for size, vector in list(zip(sizes, vectors.T, strict=True))[-rank:]:
            if float(size) > 1e-12 * float(sizes.max()):
                scaled += torch.outer(matrix @ vector / size.sqrt(), vector)
    return alpha / len(matrix) * outer @ scaled @ inner
