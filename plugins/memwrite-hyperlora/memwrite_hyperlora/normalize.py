"""How much a matrix says, made the same for matrices of few and of many tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: As the authors have it: added to the square of the Frobenius norm, and to the spectral norm.
EPS = 1e-6


def normalized(matrices: Tensor, norm: str, rank: int) -> Tensor:
    """Return matrices (..., M, N), each divided by its norm; for "svd" with its largest `rank` singular values set to 1.

    Matrices of zeros stay zeros.
    """
    if norm == "svd":
        flat: Tensor = Flattened.apply(matrices, rank)  # type: ignore[no-untyped-call]
        return flat
    if norm == "spectral":
        largest: Tensor = torch.linalg.matrix_norm(matrices, 2)
        return matrices / (largest[..., None, None] + EPS)
    squares: Tensor = matrices.square().sum((-2, -1), keepdim=True)
    return matrices * torch.rsqrt(squares + EPS)


class Flattened(torch.autograd.Function):
    """U_q V_qᵀ of S = U Σ Vᵀ: the largest q singular values become 1, and the others 0, as do those that are 0 already.

    Its differential in the direction dS is U (P ∘ sym C + Q ∘ skew C) Vᵀ with C = Uᵀ dS V, P_ij = (f_i − f_j)/(σ_i − σ_j) and
    Q_ij = (f_i + f_j)/(σ_i + σ_j), where f is 1 for singular values that are kept and else 0. So singular values that are
    alike are no trouble, save at the border; a gradient through U and V themselves would explode. It is differentiated once.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, rank: int) -> Tensor:
        """Set the singular values."""
        left, sizes, right = torch.linalg.svd(matrices.double())
        small = torch.finfo(matrices.dtype).eps * max(matrices.shape[-2:])
        kept = (sizes > small * sizes[..., :1]).double()
        kept[..., rank:] = 0
        ctx.save_for_backward(left, sizes, right, kept)
        few = sizes.shape[-1]
        flat: Tensor = left[..., :few] * kept[..., None, :] @ right[..., :few, :]
        return flat.to(matrices.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        """Return the slope in S; the differential is its own adjoint."""
        left, sizes, right, kept = ctx.saved_tensors
        rows, columns = slope.shape[-2:]
        wide = max(rows, columns)
        sizes, kept = (F.pad(x, (0, wide - x.shape[-1])) for x in (sizes, kept))
        square = F.pad(left.mT @ slope.double() @ right.mT, (0, wide - columns, 0, wide - rows))
        symmetric, skew = (square + square.mT) / 2, (square - square.mT) / 2
        change = symmetric * _ratio(
            kept[..., :, None] - kept[..., None, :], sizes[..., :, None] - sizes[..., None, :]
        )
        change = change + skew * _ratio(
            kept[..., :, None] + kept[..., None, :], sizes[..., :, None] + sizes[..., None, :]
        )
        return (left @ change[..., :rows, :columns] @ right).to(slope.dtype), None


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    """Divide, with 0 / 0 = 0."""
    return torch.where(over == 0, 0, over / torch.where(over == 0, 1, under))
