"""The oracle: one row of one layer at a time, in loops a student can read, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """What one layer computed for one text.

    Attributes:
        queries: (H, T, Dh).
        keys: (Hkv, S, Dh), of S - T old slots and T tokens.
        values: (Hkv, S, Dh).
        scale: factor of the logits.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float

    @property
    def old(self) -> int:
        """The number of old slots."""
        return self.keys.shape[1] - self.queries.shape[1]

    def attention(self, head: int, token: int) -> list[float]:
        """Return what one query head gives to each slot that the token sees."""
        group = self.queries.shape[0] // self.keys.shape[0]
        keys = self.keys[head // group].double()
        query = self.queries[head, token].double()
        logits = [float(query @ key) * self.scale for key in keys[: self.old + token + 1]]
        most = max(logits)
        weights = [math.exp(logit - most) for logit in logits]
        return [weight / sum(weights) for weight in weights]


def received(seen: Seen, tokens: Sequence[int]) -> list[list[float]]:
    """Return what each slot of each key head receives from these tokens, mean over the query heads of the group."""
    heads, slots = seen.keys.shape[:2]
    group = seen.queries.shape[0] // heads
    total = [[0.0] * slots for _ in range(heads)]
    for head in range(seen.queries.shape[0]):
        for token in tokens:
            for slot, weight in enumerate(seen.attention(head, token)):
                total[head // group][slot] += weight / group
    return total


def accumulated_attention(
    seen: Seen, attention: list[list[float]], asked: list[list[float]], value_norm: bool
) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Return score, attention and number of askers of each slot, given the last two of the old slots."""
    tokens = range(seen.queries.shape[1])
    new = received(seen, tokens)
    scores: list[list[float]] = []
    for head, row in enumerate(new):
        attention[head] = [*attention[head], *[0.0] * len(tokens)]
        asked[head] = [*asked[head], *[0.0] * len(tokens)]
        scores.append([])
        for slot, weight in enumerate(row):
            attention[head][slot] += weight
            asked[head][slot] += sum(slot <= seen.old + token for token in tokens)
            norm = float(seen.values[head, slot].double().norm()) if value_norm else 1.0
            scores[head].append(norm * attention[head][slot] / asked[head][slot])
    return scores, attention, asked


def last_queries(seen: Seen, window: int, pool: int) -> list[list[float]]:
    """Return SnapKV's score: the mean attention of the last tokens, averaged over neighbouring slots."""
    count = seen.queries.shape[1]
    tokens = range(max(count - window, 0), count)
    scores = [[weight / len(tokens) for weight in row] for row in received(seen, tokens)]
    pooled: list[list[float]] = []
    for row in scores:
        padded = [0.0] * (pool // 2) + row + [0.0] * (pool // 2)
        pooled.append([sum(padded[slot : slot + pool]) / pool for slot in range(len(row))])
    return pooled


def key_norm(seen: Seen) -> list[list[float]]:
    """Return Knorm's score."""
    return [[-math.sqrt(sum(float(x) ** 2 for x in key)) for key in head] for head in seen.keys]


def key_diversity(seen: Seen) -> list[list[float]]:
    """Return KeyDiff's score."""
    scores = []
    for head in seen.keys.double():
        directions = [key / key.norm() for key in head]
        mean = sum(directions, torch.zeros_like(head[0])) / len(directions)
        scores.append([-float(key @ mean / mean.norm()) for key in directions])
    return scores


def first_and_last(seen: Seen) -> list[list[float]]:
    """Return StreamingLLM's score: the later, the better."""
    return [[float(slot) for slot in range(seen.keys.shape[1])] for _ in seen.keys]


def chosen(scores: list[float], slots: int, sinks: int, recent: int) -> list[int]:
    """Return which slots a head keeps, in order."""
    count = len(scores)
    always = [s for s in range(count) if s < sinks or s >= count - recent][:slots]
    others = sorted((s for s in range(count) if s not in always), key=lambda s: -scores[s])
    return sorted(always + others[: slots - len(always)])
