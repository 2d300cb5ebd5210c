"""The kinds of state of small networks, and how each answers queries."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.state import KINDS, StateKind

#: Of the layer norms of TTT.
EPS = 1e-6
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


def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return a layer norm of (..., D), with a scale and a shift of each head."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * scale + shift


def _ttt(names: tuple[str, ...], tensors: Mapping[str, Tensor], queries: Tensor) -> Tensor:
    """Return q + LN(f(q)) with the weights that the gradients under way lead to."""
    x = queries
    for name in names:
        weights, bias = (_stepped(tensors, letter + name).to(x.dtype) for letter in "Wb")
        x = times(weights, x if name == names[0] else F.gelu(x, approximate="tanh")) + bias[:, None]
    scale, shift = (tensors["norm." + part].to(x.dtype)[:, None] for part in ("scale", "shift"))
    return queries + normed(x, scale, shift)


def _stepped(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    rate = tensors["rate"].reshape(-1, *[1] * (tensors[name].ndim - 1))
    return tensors[name] - rate * tensors["gradient." + name]


def _ttt_axes(axes: Mapping[str, str], width: str) -> dict[str, str]:
    """Return the axes of the weights, of their gradients, and of what else it takes to read them."""
    gradients = {"gradient." + name: sizes for name, sizes in axes.items()}
    return {**axes, **gradients, "rate": "L", "norm.scale": width, "norm.shift": width}


#: Layers of the networks: their names' ends.
ONE, TWO = ("",), ("1", "2")
#: Keys and values are of one width here, so Dk and Dv have the same size.
TTT_LINEAR = StateKind(
    "ttt-linear",
    _ttt_axes({"W": "L H Dv Dk", "b": "L H Dv"}, "L H Dv"),
    recall=partial(_ttt, ONE),
    summary="linear maps per layer and head and their gradients under way, read by q + LN(W q + b)",
)
TTT_MLP = StateKind(
    "ttt-mlp",
    _ttt_axes({"W1": "L H F Dk", "b1": "L H F", "W2": "L H Dv F", "b2": "L H Dv"}, "L H Dv"),
    recall=partial(_ttt, TWO),
    summary="likewise with networks of two layers",
)


def _swiglu(tensors: Mapping[str, Tensor], queries: Tensor) -> Tensor:
    """Return W1 (silu(W0 q) ⊙ W2 q)."""
    inner = F.silu(times(tensors["W0"], queries)) * times(tensors["W2"], queries)
    return times(tensors["W1"], inner)


SWIGLU = StateKind(
    "swiglu",
    {"W0": "L H F Dk", "W1": "L H Dv F", "W2": "L H F Dk"},
    recall=_swiglu,
    summary="a gated network per layer and head, read by W1 (silu(W0 q) * W2 q)",
)
