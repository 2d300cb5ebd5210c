"""Common blocks, against difflib's own."""

from __future__ import annotations

import difflib
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwrite.evaluation.matching import BlockMatcher, longest_common_block
from memwrite.evaluation.recall import bytes_right

texts = st.text("ab", max_size=60) | st.text("abcd ", max_size=60)


@settings(max_examples=300)
@given(texts, texts, st.booleans())
def test_blocks_are_those_of_difflib(a: str, b: str, related: bool) -> None:
    """Also where one text repeats parts of the other."""
    if related:
        b = a[:20] + b + a[10:]
    reference = difflib.SequenceMatcher(None, a, b, autojunk=False)
    matcher = BlockMatcher(a, b)
    assert matcher.get_matching_blocks() == reference.get_matching_blocks()
    assert matcher.get_opcodes() == reference.get_opcodes()
    assert longest_common_block(a, b) == reference.find_longest_match()


def words(count: int, seed: int, vocabulary: int = 500) -> str:
    rng = random.Random(seed)
    known = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(vocabulary)]
    return " ".join(rng.choices(known, k=count))


def test_long_texts_have_the_values_of_difflib() -> None:
    text = words(300, 0)
    for other in (words(300, 1), text[:700] + "!" + text[900:], "a" * 1500):
        blocks = difflib.SequenceMatcher(None, text, other, autojunk=False).get_matching_blocks()
        right = sum(block.size for block in blocks) / max(len(text), len(other))
        assert bytes_right(text, other) == right


@pytest.mark.parametrize("other", ["spoilt", "unrelated", "one letter"])
def test_long_texts_are_compared_in_nearly_linear_time(other: str) -> None:
    """32 KB; a quadratic comparison takes half a minute."""
    text = words(5000, 0)
    rng = random.Random(1)
    texts = {
        "spoilt": "".join(c if rng.random() > 0.02 else "#" for c in text),
        "unrelated": words(5000, 2),
        "one letter": "e" * len(text),
    }
    begun = time.process_time()
    bytes_right(text, texts[other])
    assert time.process_time() - begun < 10
