"""ARMT's memory of one layer: values by the features of keys, kept by a delta rule, read with normalised weights."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.state import StateKind

#: Added to what is divided by, as the authors do.
EPSILON = 1e-5

ASSOCIATIVE = StateKind(
    "associative",
    {"S": "L Dv Dk", "z": "L Dk"},
    summary="values by the features of keys for each layer, added to its hidden states by S φ(q) / z·φ(q)",
)


def features(vectors: Tensor, order: int) -> Tensor:
    """Return DPFP-ν (..., 2 ν width) of vectors (..., width), none of them negative (Schlag et al. 2021, arXiv 2102.11174).

    Each is the product of two of [relu(x), relu(−x)], the second being 1 to ν places before the first.
    """
    halves = torch.cat([vectors.relu(), (-vectors).relu()], -1)
    shifted = torch.cat([halves.roll(places, -1) for places in range(1, order + 1)], -1)
    return halves.repeat(*[1] * (halves.ndim - 1), order) * shifted


def associated(memory: Tensor, z: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the memory holds under keys (B, T, Dk) as (B, T, Dv), and the weight z·k (B, T, 1) that divides it.

    Args:
        memory: S (B, Dv, Dk).
        z: (B, Dk).
        keys: features of keys or queries.
    """
    weight = torch.einsum("bk,btk->bt", z, keys)[..., None] + EPSILON
    return torch.einsum("bvk,btk->btv", memory, keys) / weight, weight


def updated(
    memory: Tensor, z: Tensor, keys: Tensor, values: Tensor, gates: Tensor, correction: bool
) -> tuple[Tensor, Tensor]:
    """Return S and z after M memory tokens have been written at once.

    S grows by Σ g (v − v̄) kᵀ, v̄ being what the memory holds under k; z by Σ γ k, where γ = 1 − z·k / ‖k‖² within 0 and 1
    says how much of k is new: 1 in a memory that is empty.

    Args:
        memory: S (B, Dv, Dk).
        z: (B, Dk).
        keys: k (B, M, Dk), features of keys.
        values: v (B, M, Dv).
        gates: g (B, M).
        correction: False takes γ for 1.
    """
    held, weight = associated(memory, z, keys)
    added = torch.einsum("bmv,bmk,bm->bvk", values - held, keys, gates)
    if correction:
        square = keys.square().sum(-1, keepdim=True) + EPSILON
        empty = (z == 0).all(-1)[:, None, None]
        new = (1 - weight / square).clamp(0, 1).masked_fill(empty, 1).detach()
        return memory + added, z + (new * keys).sum(1)
    return memory + added, z + keys.sum(1)
