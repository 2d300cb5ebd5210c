"""The kind of state of a regression, and how it answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from memwrite.errors import DivergenceError
from memwrite.state import StateKind, matrix_recall


def ridge_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the diagonal of Λ (..., Dk) in float64.

    The state's G is rounded, by up to ε tr G in all, so that ε tr G is added: else G + Λ could have no inverse.
    """
    gram = tensors["G"]
    rounding = torch.finfo(gram.dtype).eps * gram.double().diagonal(dim1=-2, dim2=-1).sum(-1)
    return tensors["log_ridge"].double().exp() + rounding[..., None]


def system(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return G + Λ (..., Dk, Dk) in float64."""
    return symmetric(tensors["G"].double()) + torch.diag_embed(ridge_of(tensors))


def symmetric(gram: Tensor) -> Tensor:
    """Return the symmetric part of (..., Dk, Dk): a G is symmetric but for what a gradient or rounding has made of it."""
    return (gram + gram.mT) / 2


def solve(systems: Tensor, right: Tensor) -> Tensor:
    """Return (G + Λ)⁻¹ of right sides (..., Dk, N), by a Cholesky factorisation.

    Raises:
        DivergenceError: G has eigenvalues below −Λ, which no regression has, or numbers that are not finite.
    """
    factor, failed = torch.linalg.cholesky_ex(systems)
    if bool(failed.any()):
        raise DivergenceError(
            "the G of a memory is not the Gram matrix of any keys, or not finite: write the memory anew"
        )
    return torch.cholesky_solve(right, factor)


def prepare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return W = S (G + Λ)⁻¹, (B, H, Dv, Dk), solved in float64 by a Cholesky factorisation.

    Raises:
        DivergenceError: as in `solve`.
    """
    solution = solve(system(tensors), tensors["S"].double().mT).mT
    return {"W": solution.to(tensors["S"].dtype)}


def recall(tensors: Mapping[str, Tensor], queries: Tensor) -> Tensor:
    """Return the reads S (G + Λ)⁻¹ q = W q of a state, or of what `prepare` has made of it.

    Raises:
        DivergenceError: as in `prepare`.
    """
    prepared = tensors if "W" in tensors else prepare(tensors)
    return matrix_recall({"S": prepared["W"]}, queries)


def condition_number(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the condition number of G + Λ (...): how much of a rounding of S a read may be off by, relatively."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(system(tensors))
    return eigenvalues[..., -1] / eigenvalues[..., 0]


GRAM = StateKind(
    "gram",
    {"S": "L H Dv Dk", "G": "L H Dk Dk", "log_ridge": "L H Dk"},
    recall=recall,
    prepare=prepare,
    summary="ridge regression of values on keys for each layer and head, read by S (G + Λ)⁻¹ q",
)
