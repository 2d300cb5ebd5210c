"""How answers to key-value queries are scored: shares, their confidence, and bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from memwrite.backbones.tokenizers import ALPHABET

_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Scores:
    """How the answers to all queries compare with the values; shares from 0 to 1.

    Attributes:
        exact_match: answers with every character of the value right; the closing `!|` does not count.
        interval: 95% confidence interval of exact_match.
        independent: how many independent answers these are worth, see `effective_count`.
        token_accuracy: characters of values right, each predicted given the right ones before it.
        set_recall: decoded answers that are a value of their context, whatever its key.
        binding: of these, the share that is the value of the queried key; None if there are none. A
            memory that holds the values without their keys comes to about 1/pairs.
    """

    exact_match: float
    interval: tuple[float, float]
    independent: float
    token_accuracy: float
    set_recall: float
    binding: float | None


def score(forced: Tensor, decoded: Tensor, targets: Tensor) -> Scores:
    """Compare answers with values, all (contexts, pairs, value length) ids.

    Exact match is the same in both ways of predicting. Set recall is of decoded answers, because an
    answer put together from a wrong first character and what follows the right one is nobody's value.

    Args:
        forced: each character predicted given the right ones before it.
        decoded: each character predicted given those predicted before it.
        targets: the values.
    """
    right = (forced == targets).all(-1)
    in_set = (decoded[:, :, None] == targets[:, None]).all(-1).any(-1)
    bound = (decoded == targets).all(-1)
    share, recalled = float(right.double().mean()), int(in_set.sum())
    count = effective_count(right.double().mean(1).tolist(), right.shape[1])
    return Scores(
        exact_match=share,
        interval=wilson(share, count),
        independent=count,
        token_accuracy=float((forced == targets).double().mean()),
        set_recall=float(in_set.double().mean()),
        binding=int(bound.sum()) / recalled if recalled else None,
    )


def effective_count(rates: Sequence[float], answers: int | Sequence[int]) -> float:
    """Estimate how many independent answers these are worth, as those of one context share a state (Kish 1965).

    Where all rates are 0 or 1 they say nothing of their dependence, and a context counts as one answer.

    Args:
        rates: each context's share of right answers.
        answers: per context; of each one where they differ.
    """
    contexts = len(rates)
    sizes = [answers] * contexts if isinstance(answers, int) else answers
    total = sum(sizes)
    mean = sum(rate * size for rate, size in zip(rates, sizes, strict=True)) / total
    if contexts == 1 or not 0 < mean < 1:
        return contexts
    # The variance of a ratio of two sums over contexts.
    spread = sum((size * (rate - mean)) ** 2 for rate, size in zip(rates, sizes, strict=True))
    variance = spread * contexts / (contexts - 1) / total**2
    return min(max(mean * (1 - mean) / variance, contexts), total) if variance else total


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the 95% confidence interval of a share of `count` independent answers (Wilson 1927)."""
    square = _NORMAL_95**2 / count
    centre = share + square / 2
    half = math.sqrt(square * (share * (1 - share) + square / 4))
    low, high = ((centre + sign * half) / (1 + square) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def bits_recalled(exact: float, value_length: int) -> float:
    """Return `fano_bits` about one value of so many characters, each of `ALPHABET`."""
    return fano_bits(exact, len(ALPHABET) ** value_length)


def fano_bits(exact: float, choices: int) -> float:
    """Return the bits that answers right with probability `exact` hold about one value, errors spread evenly (Fano).

    Args:
        exact: from 0 to 1; up to chance it is worth nothing.
        choices: values, all equally likely; at least 2.
    """
    if exact <= 1 / choices:
        return 0.0
    wrong = 1 - exact
    lost = wrong * math.log2(wrong / (choices - 1)) if wrong > 0 else 0.0
    return math.log2(choices) + exact * math.log2(exact) + lost
