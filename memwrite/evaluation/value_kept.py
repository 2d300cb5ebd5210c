"""Value kept: of what a context is worth to the text behind it, the share that a memory of the context is worth.

    value kept = (bits without memory - bits with memory) / (bits without memory - bits with the context in sight)

0 is no memory, 1 is as good as the context, and below 0 is harmful.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.state import MemoryState, Tokens
from memwrite.tasks.base import EvaluatedMemory

_RESAMPLES = 2000


@dataclass(frozen=True)
class Prediction:
    """How a text was predicted, from its second token on.

    Attributes:
        bits: negative log2-likelihood of each token.
        choices: the model's first choice for each of them, given the right ones before it.
        right: how many of these are the text's.
    """

    bits: tuple[float, ...]
    choices: tuple[int, ...]
    right: int


@dataclass(frozen=True)
class ValueKept:
    """The share of the contexts' worth that a memory keeps.

    Attributes:
        mean: all bits that the memory saves, over all bits that the context in sight saves.
        interval: 95% bootstrap interval over contexts; None for fewer than three.
        least, most: of single contexts, among those that help.
        helped: contexts in sight of which the text is likelier.
    """

    mean: float
    interval: tuple[float, float] | None
    least: float
    most: float
    helped: int


def value_kept(
    without: Sequence[float], remembered: Sequence[float], visible: Sequence[float]
) -> ValueKept | None:
    """Compare the bits of the same texts without a memory, with one, and with the context in sight.

    Returns:
        None where the contexts are worth nothing: in sight of them the texts are no likelier.
    """
    saved = np.subtract(without, remembered)
    worth = np.subtract(without, visible)
    if worth.sum() <= 0:
        return None
    shares = saved[worth > 0] / worth[worth > 0]
    interval = None
    if len(worth) >= 3:
        drawn = np.random.default_rng(0).integers(len(worth), size=(_RESAMPLES, len(worth)))
        total = worth[drawn].sum(1)
        means = saved[drawn].sum(1)[total > 0] / total[total > 0]
        low, high = np.quantile(means, (0.025, 0.975))
        interval = float(low), float(high)
    return ValueKept(
        mean=float(saved.sum() / worth.sum()),
        interval=interval,
        least=float(shares.min()),
        most=float(shares.max()),
        helped=len(shares),
    )


def predict(
    memory: EvaluatedMemory, state: MemoryState, texts: Sequence[Sequence[int]]
) -> list[Prediction]:
    """Predict texts, each behind the memory of its row, where a text is what the model is to go on from.

    Args:
        memory: that reads.
        state: a row for each text.
        texts: token ids, at least 2 of each.
    """
    opens = memory.opens(state) or [True] * len(texts)
    opening = list(memory.backbone.tokenizer.opening)
    rows = [[*(opening if own else []), *text] for own, text in zip(opens, texts, strict=True)]
    logits = memory.read(state, Tokens.from_rows(rows)).logits
    return [
        _prediction(own[len(row) - len(text) : len(row) - 1], text[1:])
        for own, row, text in zip(logits, rows, texts, strict=True)
    ]


def _prediction(logits: Tensor, targets: Sequence[int]) -> Prediction:
    right = torch.tensor(targets, device=logits.device)
    bits = F.cross_entropy(logits, right, reduction="none").double() / math.log(2)
    choices = logits.argmax(-1)
    return Prediction(tuple(bits.tolist()), tuple(choices.tolist()), int((choices == right).sum()))


@dataclass(frozen=True)
class Reading:
    """How all texts were predicted under one condition.

    Attributes:
        bits_per_token: mean over all tokens.
        value_kept: None where the contexts are worth nothing.
        agreement: share of first choices that are those with the context in sight.
    """

    bits_per_token: float
    value_kept: ValueKept | None
    agreement: float


def summarise(
    own: Sequence[Prediction], without: Sequence[Prediction], full: Sequence[Prediction]
) -> Reading:
    """Summarise predictions of the same texts, compared with those without memory and with the context in sight."""
    tokens = sum(len(prediction.choices) for prediction in own)
    same = sum(
        mine == theirs
        for a, b in zip(own, full, strict=True)
        for mine, theirs in zip(a.choices, b.choices, strict=True)
    )
    return Reading(
        bits_per_token=sum(_bits(own)) / tokens,
        value_kept=value_kept(_bits(without), _bits(own), _bits(full)),
        agreement=same / tokens,
    )


def share_right(predictions: Sequence[Prediction]) -> float:
    """Return the share of tokens that were the first choice."""
    return fmean(p.right / len(p.choices) for p in predictions)


def _bits(predictions: Sequence[Prediction]) -> list[float]:
    return [sum(prediction.bits) for prediction in predictions]
