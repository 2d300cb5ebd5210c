"""The cells: what a layer's hidden states write, and where its memory starts, for each mechanism its own."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.state import StateKind
from memwrite_fastweights.chunks import Rule
from memwrite_fastweights.config import FastWeightsConfig


def unit(states: Tensor) -> Tensor:
    """Scale (..., D) to length 1."""
    return F.normalize(states, dim=-1, eps=1e-6)


class Cell(nn.Module, ABC):
    """Makes keys and values of a layer's hidden states.

    Args:
        config: widths and heads.
        width: D, of the hidden states.
        dtype: of the parameters.

    Attributes:
        kind: of the states.
    """

    kind: StateKind

    def __init__(self, config: FastWeightsConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._heads = config.heads
        self.key = nn.Linear(width, config.heads * config.rank, bias=False, dtype=dtype)
        self.value = nn.Linear(width, config.heads * config.values, bias=False, dtype=dtype)

    def by_head(self, states: Tensor) -> Tensor:
        """Split (B, T, H·n) into (B, T, H, n)."""
        return states.reshape(*states.shape[:-1], self._heads, -1)

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """Return how tokens change weights."""

    @abstractmethod
    def empty(self) -> dict[str, Tensor]:
        """Return one row of the layer's state, tensors without a batch axis, of a memory that has read nothing."""

    @abstractmethod
    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Make what the rule writes, name -> (B, T, H, n), of hidden states (B, T, D)."""
