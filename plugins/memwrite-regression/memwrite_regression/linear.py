"""Sums of outer products that fade, for all tokens of a chunk at once, in plain torch.

With L the running sum of log γ, a matrix M_t = γ_t M_{t−1} + β_t v_t k_tᵀ that a chunk of C tokens finds as M_0 is

    M_{t−1} = g_t M_0 + Σ_{j<t} D_tj v_j k_jᵀ,    g_t = exp(L_{t−1}),    D_tj = exp(L_{t−1} − L_j) β_j
    M_C = exp(L_C) M_0 + Σ_j h_j v_j k_jᵀ,    h_j = exp(L_C − L_j) β_j

so that its products with vectors are a masked attention inside the chunk and a product with M_0. These are differences of
sums, never quotients of products, which a γ near 0 would break.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def chunked(tokens: Tensor, size: int) -> Tensor:
    """Cut (B, T, H, ...) into (B, H, N, C, ...), with zeros at the end to fill up the last chunk."""
    tokens = tokens.transpose(1, 2)
    missing = -tokens.shape[2] % size
    if missing:
        tokens = F.pad(tokens, (0, 0) * (tokens.ndim - 3) + (0, missing))
    return tokens.reshape(*tokens.shape[:2], -1, size, *tokens.shape[3:])


def joined(chunks: Tensor, length: int) -> Tensor:
    """Return (B, H, N, C, ...) as the (B, T, H, ...) that it was cut from."""
    return chunks.flatten(2, 3)[:, :, :length].transpose(1, 2)


class Fading:
    """The weights that earlier tokens have at later ones.

    Args:
        log_keep: log γ (B, H, N, C), at most 0.
        weight: β (B, H, N, C).

    Attributes:
        within: D (B, H, N, C, C), 0 from the diagonal on.
        before: g (B, H, N, C).
        behind: h (B, H, N, C).
        keep: exp(L_C) (B, H, N).
    """

    def __init__(self, log_keep: Tensor, weight: Tensor) -> None:
        behind = log_keep.cumsum(-1)
        before = behind - log_keep
        apart = before[..., :, None] - behind[..., None, :]
        later = torch.ones_like(apart, dtype=torch.bool).tril(-1)
        self.within = apart.masked_fill(~later, -torch.inf).exp() * weight[..., None, :]
        self.before = before.exp()
        self.behind = (behind[..., -1:] - behind).exp() * weight
        self.keep = behind[..., -1].exp()

    def states(self, keys: Tensor, values: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return M (B, H, N, Dv, Dk) before every chunk, and behind the last one.

        Args:
            keys: (B, H, N, C, Dk).
            values: (B, H, N, C, Dv).
            start: (B, H, Dv, Dk).
        """
        added = (self.behind[..., None] * values).mT @ keys
        states = []
        for keep, more in zip(self.keep.unbind(2), added.unbind(2), strict=True):
            states.append(start)
            start = keep[..., None, None] * start + more
        return torch.stack(states, 2), start

    def times(self, keys: Tensor, values: Tensor, states: Tensor, queries: Tensor) -> Tensor:
        """Return M_{t−1} q_t (B, H, N, C, Dv) for queries (B, H, N, C, Dk) and the states before every chunk."""
        inside = (queries @ keys.mT * self.within) @ values
        return self.before[..., None] * (queries @ states.mT) + inside

    def each(self, keys: Tensor, values: Tensor, states: Tensor, chunks: slice) -> Tensor:
        """Return M_{t−1} itself for every token of some chunks, (B, H, their number, C, Dv, Dk)."""
        keys, values, states = (x[:, :, chunks] for x in (keys, values, states))
        outer = (values[..., :, None] * keys[..., None, :]).flatten(-2)
        inside = (self.within[:, :, chunks] @ outer).reshape(*outer.shape[:-1], *states.shape[-2:])
        return self.before[:, :, chunks, :, None, None] * states[..., None, :, :] + inside
