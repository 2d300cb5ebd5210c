"""Attention Matching (2026, arXiv 2602.16284): a bias and new values for chosen keys, fitted so that attention comes out the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memwrite_kv.selection import Chosen

#: Bounds of the mass of one slot, and steps of projected gradient descent within them (the paper's fast setting).
BOUNDS = (torch.tensor(-3.0).exp().item(), torch.tensor(3.0).exp().item())
STEPS = 2
#: Ridge of the least squares, as a share of the trace of their normal equations. Reference queries are much alike, so these are
#: nearly singular: without a ridge the last digits of a logit, which a row's neighbours change, are amplified until they
#: show. This one damps what moves less than some thousandths of the output; from the authors' `lstsq` it differs by 2e-4.
RIDGE = 1e-5


@dataclass(frozen=True)
class Reference:
    """Queries that the fit has to serve, for each row and key head.

    Attributes:
        logits: (B, Hkv, n, S) on the whole cache, -inf where there is no slot.
        values: (B, Hkv, S, Dh).
        asked: (B, n) bool, which queries are real.
    """

    logits: Tensor
    values: Tensor
    asked: Tensor

    @cached_property
    def weights(self) -> Tensor:
        """The attention (B, Hkv, n, S), 0 at queries that are none."""
        return self.logits.softmax(-1).masked_fill(~self.asked[:, None, :, None], 0)


def mass(reference: Reference, kept: Chosen) -> Tensor:
    """Return the bias β (B, Hkv, t) of kept slots, so that their exponentials sum up to those of all slots.

    Least squares in float64, min ‖E_S b − E 1‖² within bounds, β = log b; of each query e = exp(logit − its largest). What no
    query asks for stays 1.
    """
    full = (reference.logits - reference.logits.amax(-1, keepdim=True)).exp()
    full = full.masked_fill(~reference.asked[:, None, :, None], 0)
    some, total = kept.columns(full, 0).double(), full.double().sum(-1, keepdim=True)
    low, high = BOUNDS
    square, against = some.mT @ some, some.mT @ total
    b = 1 + _solved(square, some.mT @ (total - some.sum(-1, keepdim=True)))
    b = b.clamp(low, high)
    step = 1 / torch.linalg.matrix_norm(square, 2)[..., None, None].clamp(min=1e-12)
    for _ in range(STEPS):
        b = (b - step * (square @ b - against)).clamp(low, high)
    bias: Tensor = b[..., 0].log()
    return bias.masked_fill(~kept.real[:, None], 0)


def values(reference: Reference, kept: Chosen, bias: Tensor) -> Tensor:
    """Return values (B, Hkv, t, Dh) with which attention to the kept slots alone comes nearest to the whole output.

    Least squares in float64, min ‖X C − A V‖², X the softmax over the kept slots with their bias, with a small
    ridge towards the slots' own values.
    """
    logits = kept.columns(reference.logits, -torch.inf).double() + bias[:, :, None]
    some = logits.softmax(-1).masked_fill(~reference.asked[:, None, :, None], 0)
    output = (reference.weights @ reference.values).double()
    own = kept.of(reference.values).double()
    return own + _solved(some.mT @ some, some.mT @ (output - some @ own))


def _solved(square: Tensor, against: Tensor) -> Tensor:
    """Solve the normal equations of least squares with a ridge; what no query asks for stays 0."""
    trace = square.diagonal(dim1=-2, dim2=-1).sum(-1)
    ridge = (RIDGE * trace).clamp(min=1e-12)[..., None, None]
    one = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    solution: Tensor = torch.linalg.solve(square + ridge * one, against)
    return solution
