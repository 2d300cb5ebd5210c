"""The oracle: one query of one head, its memory and the text before it, in loops a student can read."""

from __future__ import annotations

import math

from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two vectors."""
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def chosen(query: Tensor, keys: list[Tensor], count: int, least: float) -> list[int]:
    """Return the numbers of the `count` keys that are most like the query, of those above `least`."""
    order = sorted(range(len(keys)), key=lambda j: -cosine(query, keys[j]))
    return [j for j in order[:count] if cosine(query, keys[j]) > least]


def attend(logits: list[float], values: list[Tensor]) -> Tensor:
    """Return the values' mean, weighted by the softmax of the logits."""
    most = max(logits)
    weights = [math.exp(logit - most) for logit in logits]
    parts = [weight * value for weight, value in zip(weights, values, strict=True)]
    return sum(parts[1:], parts[0]) / sum(weights)
