"""What is predicted of labelled tokens is what a read of the whole query says there."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import Rows, tolerance
from naive import built, many, memories, prefixed
from support import each_backbone
from torch import Tensor

from memwrite import Memory, MemoryState, Tokens
from memwrite.protocols import IGNORED


def expected(
    memory: Memory, state: MemoryState, query: Tokens, labels: Tensor
) -> list[tuple[int, int, int, Tensor]]:
    """Query, column among its real tokens, label and logits of every labelled token, by `Memory.read`."""
    output = memory.read(state, query)
    found = []
    each = query.ids.shape[1]
    for number in range(len(query.ids) * each):
        row, own = divmod(number, each)
        places = query.mask[row, own].nonzero().flatten().tolist()
        for column, place in enumerate(places):
            label = int(labels[row, own, place])
            logits = output.logits[row, own, places[column - 1]] if column else None
            if not column and output.first_logits is not None:
                logits = output.first_logits[row]
            if label != IGNORED and logits is not None:
                found.append((number, column, label, logits))
    return found


@each_backbone
@pytest.mark.parametrize("pair", ["prefix", "full-context"])
@settings(max_examples=12)
@given(queries=many(), seed=st.integers(0, 99))
def test_it_is_what_a_read_says(
    family: str, attention: str, pair: str, queries: tuple[Rows, Tokens], seed: int
) -> None:
    """Wherever padding stands, labels at padding count for nothing, and a first token only where a memory predicts it."""
    _, query = queries
    rows = len(query.ids)
    if pair == "prefix":
        memory, state = prefixed(family, attention), memories(rows)
    else:
        memory = built(family, attention, "full-context", "key-value")
        state = memory.write(Tokens.from_rows([[5, 6, 7]] * rows)).state
    throw = random.Random(seed)
    labels = query.ids.clone().apply_(lambda id: id if throw.random() < 0.6 else IGNORED)
    with torch.no_grad():
        found = memory.predict(state, query, labels)
        wanted = expected(memory, state, query, labels)
    order = sorted(
        range(len(found.labels)), key=lambda i: (int(found.queries[i]), int(found.columns[i]))
    )
    assert len(order) == len(wanted)
    for index, (number, column, label, logits) in zip(order, wanted, strict=True):
        place = (found.queries[index], found.columns[index], found.labels[index])
        assert tuple(map(int, place)) == (number, column, label)
        torch.testing.assert_close(found.logits[index], logits, **tolerance(family))
    counts = found.sums(torch.ones_like(found.labels), query.ids.shape[:-1])
    assert counts.shape == query.ids.shape[:-1]
    assert counts.flatten().tolist() == [
        sum(number == n for n, *_ in wanted) for number in range(counts.numel())
    ]
    assert (found.without_first().columns > 0).all()
