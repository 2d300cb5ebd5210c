"""Strategies of hypothesis that draw batches of tokens."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from memwrite import Tokens

#: The most tokens of a row that is drawn: more than the window of `FAMILIES`.
LONGEST = 9

Rows = list[list[int]]


@st.composite
def padded_rows(draw: Any, rows: int | None = None, longest: int = LONGEST) -> tuple[Rows, Tokens]:
    """Draw rows of byte tokens, and the same as one batch with padding of any id left, right and in between.

    Args:
        draw: given by hypothesis.
        rows: how many; None for one to three.
        longest: the most tokens of a row; a row may be empty, but not all of them.
    """
    count = draw(st.integers(1, 3)) if rows is None else rows
    tokens = st.lists(st.integers(0, 257), max_size=longest)
    lists = draw(st.lists(tokens, min_size=count, max_size=count).filter(any))
    width = max(map(len, lists)) + draw(st.integers(0, 2))
    ids = torch.full((count, width), draw(st.integers(0, 257)))
    mask = torch.zeros(count, width, dtype=torch.bool)
    for row, real in enumerate(lists):
        columns = st.sets(st.integers(0, width - 1), min_size=len(real), max_size=len(real))
        places = sorted(draw(columns))
        ids[row, places] = torch.tensor(real, dtype=torch.int64)
        mask[row, places] = True
    return lists, Tokens(ids, mask)


@st.composite
def query_batches(draw: Any, longest: int = LONGEST) -> tuple[Rows, Tokens]:
    """Draw Q queries for each of B memories: their B·Q rows of byte tokens, and the batch (B, Q, T)."""
    batch, each = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    lists, flat = draw(padded_rows(batch * each, longest))
    return lists, flat.map(lambda tensor: tensor.reshape(batch, each, -1))
