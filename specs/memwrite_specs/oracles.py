"""Linear associative memories without training: what any writer into a matrix can be held against.

All are computed in float64, on (B, ...) batches whose rows have nothing to do with each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hebbian(keys: Tensor, values: Tensor) -> Tensor:
    """Return the sum of outer products, S = Σ v kᵀ (Kohonen 1972); exact for orthonormal keys.

    Args:
        keys: (B, N, Dk).
        values: (B, N, Dv).

    Returns:
        S (B, Dv, Dk), read as S q.

    Raises:
        RuntimeError: the shapes do not fit.
    """
    return values.double().mT @ keys.double()


def delta(keys: Tensor, values: Tensor, rate: float = 1.0) -> Tensor:
    """Do one pass of S ← S + rate·(v − S k) kᵀ from zero (Widrow and Hoff 1960), in the order of the pairs.

    Args:
        keys: (B, N, Dk). At rate 1 and a key of length 1 the last pair written is recalled exactly.
        values: (B, N, Dv).
        rate: stable from 0 to 2 over the squared length of the longest key.

    Returns:
        S (B, Dv, Dk), read as S q.

    Raises:
        RuntimeError: the shapes do not fit.
    """
    state = torch.zeros_like(hebbian(keys, values))
    for key, value in zip(keys.double().unbind(1), values.double().unbind(1), strict=True):
        error = value - (state @ key[..., None])[..., 0]
        state = state + rate * error[..., None] * key[:, None]
    return state


def ridge(keys: Tensor, values: Tensor, strength: float = 1e-6) -> Tensor:
    """Return the minimum of Σ |v − S k|² + strength·|S|² over all pairs at once (Hoerl and Kennard 1970).

    Args:
        keys: (B, N, Dk).
        values: (B, N, Dv).
        strength: positive; towards 0 comes the least-squares solution of least norm.

    Returns:
        S (B, Dv, Dk), read as S q.

    Raises:
        RuntimeError: the shapes do not fit, or strength is 0 and the keys do not span R^Dk.
    """
    keys = keys.double()
    damping = strength * torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    state: Tensor = torch.linalg.solve(keys.mT @ keys + damping, hebbian(keys, values), left=False)
    return state
