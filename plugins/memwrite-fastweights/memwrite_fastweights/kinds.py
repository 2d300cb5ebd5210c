"""The kinds of state of small networks, and how each answers queries."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.state import KINDS, StateKind

#: A linear memory is a matrix like any other.
MATRIX = KINDS["matrix"]


def times(weights: Tensor, inputs: Tensor) -> Tensor:
    """Map (B, T, H, n) by the matrices (B, H, m, n) of their heads."""
    return torch.einsum("bhmn,bthn->bthm", weights.to(inputs.dtype), inputs)


def _mlp(tensors: Mapping[str, Tensor], queries: Tensor) -> Tensor:
    """Return W2 gelu(W1 q)."""
    return times(tensors["W2"], F.gelu(times(tensors["W1"], queries)))


MLP = StateKind(
    "mlp",
    {"W1": "L H F Dk", "W2": "L H Dv F"},
    recall=_mlp,
    summary="a network of two matrices per layer and head, read by W2 gelu(W1 q)",
)
