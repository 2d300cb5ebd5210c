"""The oracle: one row of one layer at a time, in loops a student can read, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memwrite_kv.matching import RIDGE


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


def channels(queries: Tensor, keys: Tensor, kept: int) -> list[list[int]]:
    """Return the channels that ThinK keeps of each key head, by the norm of what each adds to the logits.

    Args:
        queries: (H, n, Dh), the last ones.
        keys: (Hkv, M, Dh).
        kept: how many.
    """
    heads, _, width = keys.shape
    group = queries.shape[0] // heads
    chosen = []
    for head in range(heads):
        asks = queries[head * group : (head + 1) * group].double().flatten(0, 1)
        worth = []
        for channel in range(width):
            logits = (
                asks[:, channel : channel + 1] @ keys[head].double()[:, channel : channel + 1].T
            )
            worth.append(float(torch.linalg.matrix_norm(logits)))
        best = sorted(range(width), key=lambda channel: -worth[channel])
        chosen.append(sorted(best[:kept]))
    return chosen


def policies(
    seen: Seen, marks: Sequence[int], sinks: int, local: float, frequent: float
) -> list[list[tuple[float, set[int]]]]:
    """Return for each key head FastGen's policies, cheapest first: what they recover, and the slots that they keep.

    Args:
        seen: of the text alone.
        marks: 2 for special tokens, 1 for punctuation, else 0.
        sinks: first tokens that count as special.
        local: share of the tokens that are local to a token.
        frequent: share of the tokens that are frequent.
    """
    count, group = len(marks), seen.queries.shape[0] // seen.keys.shape[0]
    window, heads = max(1, int(local * count + 1e-9)), []
    special = {i for i, mark in enumerate(marks) if mark == 2 or i < sinks}
    punctuated = special | {i for i, mark in enumerate(marks) if mark == 1}
    for head in range(seen.keys.shape[0]):
        queries = range(head * group, (head + 1) * group)
        paid = [(t, seen.attention(query, t)) for query in queries for t in range(count)]
        total = [0.0] * count
        for _, row in paid:
            for i, weight in enumerate(row):
                total[i] += weight
        ranked = [i for _, i in sorted((-weight, i) for i, weight in enumerate(total))]
        frequented = punctuated | set(ranked[: math.ceil(frequent * count - 1e-9)])
        found = []
        for kept, near in ((special, 0), (punctuated, 0), (frequented, 0), (frequented, window)):
            share = 0.0
            for token, row in paid:
                own = (w for i, w in enumerate(row) if i in kept or i > token - near)
                share += sum(own) / len(paid)
            found.append((share, kept | set(range(count - near, count))))
        heads.append([*found, (1.0, set(range(count)))])
    return heads


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


def ladder(seen: Seen, layer: int, slots: int, sinks: int, step: int) -> list[list[float]]:
    """Return LaCache's score: 1 on the steps of this layer, and the later, the better."""
    count = seen.keys.shape[1]
    length = max(math.ceil(max(count - sinks, 1) * step / max(slots - sinks, 1)), step)
    starts = list(range(length - step + 1))
    start = starts[layer % len(starts)]
    row = []
    for slot in range(count):
        on_step = (slot - sinks) % length in range(start, start + step)
        row.append(float(on_step) + slot / count)
    return [row for _ in seen.keys]


def chosen(scores: list[float], slots: int, sinks: int, recent: int) -> list[int]:
    """Return which slots a head keeps, in order."""
    count = len(scores)
    always = [s for s in range(count) if s < sinks or s >= count - recent][:slots]
    others = sorted((s for s in range(count) if s not in always), key=lambda s: -scores[s])
    return sorted(always + others[: slots - len(always)])


def softmax(logits: Sequence[float]) -> list[float]:
    """Return the softmax of a list."""
    most = max(logits)
    weights = [math.exp(logit - most) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def from_behind(seen: Seen, later: Tensor) -> list[list[list[float]]]:
    """Return for each key head what each of its queries gives to all slots: `later` (H, n, Dh) stand behind them all."""
    group = later.shape[0] // seen.keys.shape[0]
    return [
        [
            softmax([float(query @ key) * seen.scale for key in keys])
            for queries in later[head * group : (head + 1) * group].double()
            for query in queries
        ]
        for head, keys in enumerate(seen.keys.double())
    ]


def compact(seen: Seen, later: Tensor, score: str, value_norm: bool) -> list[list[float]]:
    """Return the score of each slot by queries that stand behind them all."""
    scores = []
    for head, rows in enumerate(from_behind(seen, later)):
        columns = list(zip(*rows, strict=True))
        if score == "max":
            worth = [max(column) for column in columns]
        elif score == "rms":
            worth = [math.sqrt(sum(w * w for w in column)) for column in columns]
        else:
            worth = [sum(column) for column in columns]
        norms = seen.values[head].double().norm(dim=-1).tolist()
        scores.append([w * (n if value_norm else 1) for w, n in zip(worth, norms, strict=True)])
    return scores


def matched(
    seen: Seen, later: Tensor, head: int, index: list[int], bias: bool
) -> tuple[Tensor, Tensor]:
    """Return the bias and the values of one head's kept slots: Attention Matching, by torch's own least squares."""
    group = later.shape[0] // seen.keys.shape[0]
    queries = later[head * group : (head + 1) * group].double().flatten(0, 1)
    logits = queries @ seen.keys[head].double().T * seen.scale
    beta = torch.zeros(len(index), dtype=torch.float64)
    if bias:
        e = (logits - logits.max(1, keepdim=True).values).exp()
        some, total = e[:, index], e.sum(1, keepdim=True)
        low, high = math.exp(-3), math.exp(3)
        b = (1 + ridged(some, total - some.sum(1, keepdim=True))).clamp(low, high)
        for _ in range(2):
            step = 1 / torch.linalg.matrix_norm(some, 2) ** 2
            b = (b - step * some.T @ (some @ b - total)).clamp(low, high)
        beta = b[:, 0].log()
    weights = (logits[:, index] + beta).softmax(1)
    output = logits.softmax(1) @ seen.values[head].double()
    own = seen.values[head].double()[index]
    return beta, own + ridged(weights, output - weights @ own)


def ridged(some: Tensor, against: Tensor) -> Tensor:
    """Return the least squares solution with a ridge: one more row for each unknown, which pulls it to 0."""
    pull = (RIDGE * some.square().sum()).sqrt() * torch.eye(some.shape[1], dtype=some.dtype)
    rows = torch.cat([some, pull]), torch.cat([against, torch.zeros_like(against[: len(pull)])])
    solution: Tensor = torch.linalg.lstsq(*rows, driver="gelsd").solution
    return solution


def expected_attention(
    seen: Seen, flat: Tensor, sinks: int, rotations: Tensor, value_norm: bool
) -> list[list[float]]:
    """Return the score of slots by Gaussian queries.

    Args:
        seen: of a text without old slots.
        flat: (H, T, Dh), the queries at position 0.
        sinks: first tokens that do not count.
        rotations: (future, Dh, Dh), each turning a column to a position behind the text.
        value_norm: whether to multiply by the norm of the value.
    """
    group, slots = len(flat) // len(seen.keys), seen.keys.shape[1]
    average = rotations.mean(0)
    scores = [[0.0] * slots for _ in seen.keys]
    for head, queries in enumerate(flat[:, min(sinks, slots - 1) :].double()):
        mean = average @ queries.mean(0)
        around = queries - queries.mean(0)
        spread = average @ (around.T @ around / len(queries)) @ average.T
        keys = seen.keys[head // group].double()
        logits = [
            float(mean @ key) * seen.scale + float(key @ spread @ key) * seen.scale**2 / 2
            for key in keys[sinks:]
        ]
        for slot, weight in enumerate(softmax(logits) if logits else [], start=sinks):
            scores[head // group][slot] += weight / group
    if value_norm:
        for head, row in enumerate(scores):
            for slot in range(slots):
                row[slot] *= float(seen.values[head, slot].double().norm())
    return scores


def reconstruction(seen: Seen, slots: int) -> list[list[float]]:
    """Return the largest weight that any token of the repetition gives to each of the first `slots`."""
    heads = seen.keys.shape[0]
    group = seen.queries.shape[0] // heads
    most = [[0.0] * slots for _ in range(heads)]
    for head in range(seen.queries.shape[0]):
        for token in range(seen.queries.shape[1]):
            for slot, weight in enumerate(seen.attention(head, token)[:slots]):
                most[head // group][slot] = max(most[head // group][slot], weight)
    return most
