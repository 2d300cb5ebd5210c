"""The cells: a layer's keys, values and gates from its hidden states, for each rule its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite_delta.config import DeltaConfig, GatedDeltaConfig, HebbianConfig, MatrixConfig


@dataclass(frozen=True)
class Writes:
    """T writes of every head: S' = Diag(keep) S − Diag(erase)(S k)kᵀ + Diag(write) v kᵀ.

    Attributes:
        keys: (B, T, H, Dk).
        values: (B, T, H, Dv).
        log_keep: (B, T, H, Dv), or (B, T, H, 1) where all rows share a gate; at most 0.
        erase: in [0, 1], shaped as `log_keep`.
        write: shaped as `log_keep`.
    """

    keys: Tensor
    values: Tensor
    log_keep: Tensor
    erase: Tensor
    write: Tensor


def unit(states: Tensor) -> Tensor:
    """Scale (..., D) to length 1."""
    return F.normalize(states, dim=-1, eps=1e-6)


def projection(outputs: int, inputs: int, dtype: torch.dtype) -> nn.Linear:
    """Make a linear map without bias, initialised as nn.Linear is, which is δ-mem's Kaiming with a = √5."""
    return nn.Linear(inputs, outputs, bias=False, dtype=dtype)


class Cell(nn.Module):
    """Makes keys and values of a layer's hidden states.

    Args:
        config: widths and heads.
        width: D, of the hidden states.
        dtype: of the parameters.
    """

    def __init__(self, config: MatrixConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._heads = config.heads
        self.key = projection(config.heads * config.rank, width, dtype)
        self.value = projection(config.heads * config.values, width, dtype)

    def by_head(self, states: Tensor) -> Tensor:
        """Split (B, T, H·n) into (B, T, H, n)."""
        return states.reshape(*states.shape[:-1], self._heads, -1)


class DeltaCell(Cell):
    """Adds δ-mem's gates (arXiv 2605.12357)."""

    def __init__(self, config: DeltaConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__(config, width, dtype)
        self._config = config
        gates = config.heads * (config.values if config.gates == "row" else 1)
        self.beta = self._gate(gates, width, config.beta_bias, dtype)
        if config.forgetting == "free":
            bias = -config.beta_bias if config.keep_bias is None else config.keep_bias
            self.keep = self._gate(gates, width, bias, dtype)

    @staticmethod
    def _gate(gates: int, width: int, bias: float, dtype: torch.dtype) -> nn.Linear:
        gate = nn.Linear(width, gates, dtype=dtype)
        nn.init.zeros_(gate.weight)
        nn.init.constant_(gate.bias, bias)
        return gate

    def forward(self, hidden: Tensor) -> Writes:
        """Make the writes of hidden states (B, T, D)."""
        config = self._config
        keys = self.by_head(self.key(hidden))
        score = self.by_head(self.beta(hidden))
        beta = score.sigmoid()
        if config.forgetting == "coupled":
            log_keep = F.logsigmoid(-score)  # 1 − β would round to 1 below β = 6e-8
        elif config.forgetting == "free":
            log_keep = F.logsigmoid(self.by_head(self.keep(hidden))) + math.log(config.most_keep)
        else:
            log_keep = torch.zeros_like(beta)
        erase = beta * log_keep.exp() if config.update == "lambda_outside" else beta
        return Writes(
            unit(keys.tanh()) if config.normalize else keys,
            self.by_head(self.value(hidden)),
            log_keep,
            erase,
            beta,
        )


class HebbianCell(Cell):
    """Adds constant gates, as fast weights have them: nothing is erased but by decay."""

    def __init__(self, config: HebbianConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__(config, width, dtype)
        self._log_keep, self._rate = math.log(config.keep), config.learning_rate

    def forward(self, hidden: Tensor) -> Writes:
        """Make the writes of hidden states (B, T, D)."""
        keys, values = self.by_head(self.key(hidden)), self.by_head(self.value(hidden))
        gate = keys.new_ones(*keys.shape[:-1], 1)
        return Writes(unit(keys), values, gate * self._log_keep, gate * 0, gate * self._rate)


class GatedDeltaCell(Cell):
    """Adds gated DeltaNet's α and β, one of each for a head; α's time scales are spread as in Mamba 2."""

    def __init__(self, config: GatedDeltaConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__(config, width, dtype)
        heads = config.heads
        self.beta = projection(heads, width, dtype)
        self.alpha = projection(heads, width, dtype)
        self.log_rate = nn.Parameter(torch.empty(heads, dtype=dtype).uniform_(1, 16).log())
        step = torch.empty(heads, dtype=dtype).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.step_bias = nn.Parameter(step.expm1().log())  # softplus of it is the step

    def forward(self, hidden: Tensor) -> Writes:
        """Make the writes of hidden states (B, T, D)."""
        step = F.softplus(self.alpha(hidden) + self.step_bias)
        log_keep = (-self.log_rate.exp() * step)[..., None]
        beta = self.beta(hidden).sigmoid()[..., None]
        keys, values = self.by_head(self.key(hidden)), self.by_head(self.value(hidden))
        return Writes(unit(F.silu(keys)), F.silu(values), log_keep, beta * log_keep.exp(), beta)
