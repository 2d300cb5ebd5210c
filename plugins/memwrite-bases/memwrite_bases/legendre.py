"""Legendre polynomials on [0, 1], orthonormal: gₙ(x) = √(2n+1) Pₙ(2x − 1)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def polynomials(count: int, x: Tensor) -> Tensor:
    """Return P₀, ..., of degrees below `count`, at y = 2x − 1 for x (...): (..., count)."""
    y = 2 * x - 1
    found = [torch.ones_like(y), y]
    for n in range(1, count - 1):
        found.append(((2 * n + 1) * y * found[n] - n * found[n - 1]) / (n + 1))
    return torch.stack(found[:count], -1)


def basis(order: int, x: Tensor) -> Tensor:
    """Return g₀, ..., gₙ of degrees below `order` at x (...): (..., order)."""
    return polynomials(order, x) * _norms(order, x)


def integrals(order: int, x: Tensor) -> Tensor:
    """Return the integrals of g₀, ..., of degrees below `order`, from 0 to x (...): (..., order).

    ∫ Pₙ(y) dy = (Pₙ₊₁ − Pₙ₋₁) / (2n + 1), and both differ by nothing at y = −1.
    """
    p = polynomials(order + 1, x)
    higher = (p[..., 2:] - p[..., :-2]) / (2 * _norms(order, x)[1:])
    return torch.cat([x[..., None], higher], -1)


def rescaled(order: int, ratio: Tensor) -> Tensor:
    """Return the matrices (..., order, order) that make of coefficients on [0, 1] those of the same function on [0, ratio], 0 behind.

    Entry (m, n) is ∫₀^ρ gₘ(x) gₙ(x / ρ) dx, by a quadrature that is exact for polynomials of these degrees. It is what the
    differential equation of LegS gives when nothing comes in: ρ^A.
    """
    nodes, weights = (part.to(ratio) for part in _quadrature(order))
    moved = basis(order, ratio[..., None] * nodes)
    own = basis(order, nodes) * weights[:, None]
    return ratio[..., None, None] * (moved.mT @ own)


@cache
def _quadrature(count: int) -> tuple[Tensor, Tensor]:
    """Return the nodes and weights of Gauss and Legendre on [0, 1], by Golub and Welsch 1969."""
    n = torch.arange(1, count, dtype=torch.float64)
    beside = n / (4 * n**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(beside.diag(1) + beside.diag(-1))
    return (values + 1) / 2, vectors[0] ** 2


def _norms(order: int, like: Tensor) -> Tensor:
    return (2 * torch.arange(order, dtype=like.dtype, device=like.device) + 1).sqrt()
