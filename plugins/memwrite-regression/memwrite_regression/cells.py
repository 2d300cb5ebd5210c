"""The cells: a layer's keys, values and gates from its hidden states."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite_regression.config import MesaConfig, RidgeConfig


@dataclass(frozen=True)
class Writes:
    """T writes of every head: S' = γS + βvkᵀ, G' = γG + βkkᵀ.

    Attributes:
        keys: (B, T, H, Dk), of length 1.
        values: (B, T, H, Dv).
        log_keep: log γ, (B, T, H), at most 0.
        weight: β, (B, T, H), from 0 to 1.
    """

    keys: Tensor
    values: Tensor
    log_keep: Tensor
    weight: Tensor

    def at(self, mask: Tensor | None) -> Writes:
        """Keep only the writes where `mask` (B, T) is True; the others change nothing."""
        if mask is None:
            return self
        idle = ~mask[..., None]
        log_keep, weight = (part.masked_fill(idle, 0) for part in (self.log_keep, self.weight))
        return Writes(self.keys, self.values, log_keep, weight)


class RidgeCell(nn.Module):
    """Makes keys, values and weights; keys as those readers make their queries, L2(tanh(W x)).

    Args:
        config: widths and heads.
        width: D, of the hidden states.
        dtype: of the parameters.
    """

    def __init__(self, config: RidgeConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._config = config
        self.key = nn.Linear(width, config.heads * config.rank, bias=False, dtype=dtype)
        self.value = nn.Linear(width, config.heads * config.values, bias=False, dtype=dtype)
        self.beta = gate(config.heads, width, config.beta_bias, dtype)

    @property
    def log_ridge(self) -> Tensor:
        """Return log λ, (H, Dk)."""
        shape = self._config.heads, self._config.rank
        return self.key.weight.new_full(shape, math.log(self._config.ridge))

    def forward(self, hidden: Tensor) -> Writes:
        """Make the writes of hidden states (B, T, D)."""
        weight = self.beta(hidden).sigmoid()
        keys = F.normalize(self._by_head(self.key(hidden)).tanh(), dim=-1, eps=1e-6)
        return Writes(keys, self._by_head(self.value(hidden)), torch.zeros_like(weight), weight)

    def _by_head(self, states: Tensor) -> Tensor:
        return states.reshape(*states.shape[:-1], self._config.heads, -1)


class MesaCell(RidgeCell):
    """Adds forgetting, and learns Λ."""

    def __init__(self, config: MesaConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__(config, width, dtype)
        self._least = config.least_ridge
        self.keep = (
            gate(config.heads, width, config.keep_bias, dtype) if config.forgetting else None
        )
        raw = math.log(math.expm1(config.ridge - config.least_ridge))
        self.ridge = nn.Parameter(torch.full((config.heads, config.rank), raw, dtype=dtype))

    @property
    def log_ridge(self) -> Tensor:
        """Return log λ, (H, Dk)."""
        return (F.softplus(self.ridge) + self._least).log()

    def forward(self, hidden: Tensor) -> Writes:
        """Make the writes of hidden states (B, T, D)."""
        writes = super().forward(hidden)
        if self.keep is None:
            return writes
        log_keep = F.logsigmoid(self.keep(hidden))
        return Writes(writes.keys, writes.values, log_keep, writes.weight)


def gate(count: int, width: int, bias: float, dtype: torch.dtype) -> nn.Linear:
    """Make the map of `count` gates, at the start the same for every input."""
    made = nn.Linear(width, count, dtype=dtype)
    nn.init.zeros_(made.weight)
    nn.init.constant_(made.bias, bias)
    return made
