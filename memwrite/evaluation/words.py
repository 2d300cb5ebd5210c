"""Answers in words compared with right ones, as SQuAD does it (Rajpurkar et al. 2016 and 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def word_match(answer: str, right: Sequence[str]) -> float:
    """Return 1 if the normalised answer is one of the right ones, else 0."""
    return float(any(normalized(answer) == normalized(text) for text in right))


def word_contained(answer: str, right: Sequence[str]) -> float:
    """Return 1 if one of the right answers stands in the answer, both normalised, else 0 (substring exact match)."""
    said = " ".join(normalized(answer))
    return float(any(" ".join(normalized(text)) in said for text in right))


def word_f1(answer: str, right: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the answer's words, by the right answer that it is nearest to.

    Where either has no words, 1 if both have none and else 0.
    """
    return max(_f1(normalized(answer), normalized(text)) for text in right)


def _f1(answer: list[str], right: list[str]) -> float:
    if not answer or not right:
        return float(answer == right)
    shared = (Counter(answer) & Counter(right)).total()
    return 2 * shared / (len(answer) + len(right))
