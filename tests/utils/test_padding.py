"""Rows of different lengths in one tensor: nothing real is lost, moved within its row, or mixed with padding."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from memwrite.utils.padding import real_first, right_padded

ROWS = st.lists(st.lists(st.integers(-3, 2**40), max_size=6), max_size=5)


@given(ROWS)
def test_padded_rows_give_the_rows_back(rows: list[list[int]]) -> None:
    numbers, mask = right_padded(rows, None)
    assert numbers.dtype == torch.int64
    assert numbers.shape == mask.shape == (len(rows), max(map(len, rows), default=0))
    assert [n[m].tolist() for n, m in zip(numbers, mask, strict=True)] == rows
    assert not numbers[~mask].any()


@given(
    st.integers(0, 6).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n)))
)
def test_real_columns_come_first_in_their_order(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows, dtype=torch.bool).reshape(len(rows), -1 if any(rows) else 0)
    order = real_first(mask)
    assert order.shape == (len(rows), max(map(sum, rows), default=0))
    for row, columns in zip(rows, order.tolist(), strict=True):
        real = [column for column, there in enumerate(row) if there]
        assert columns[: len(real)] == real
        assert not any(row[column] for column in columns[len(real) :])
