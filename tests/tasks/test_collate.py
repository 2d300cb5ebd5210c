"""Examples become a batch, and what fills it up counts for nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_specs.testing import Rows
from scatter import scattering
from support import Build
from torch import Tensor

from memwrite import Memory
from memwrite.tasks.base import IGNORED, Batch, Example, collate
from memwrite.training.loss import training_loss

ROW = st.lists(st.integers(0, 99), max_size=5)
SEGMENTED = ROW.flatmap(
    lambda ids: st.tuples(
        st.just(ids),
        st.none() | st.lists(st.integers(-1, 3), min_size=len(ids), max_size=len(ids)),
    )
)


def example(context: list[int], queries: Rows, segments: list[int] | None = None) -> Example:
    """Everything is asked for but the first token of each query."""
    return Example(context, queries, [labels_of(query) for query in queries], segments)


def labels_of(query: list[int]) -> list[int]:
    return [IGNORED, *query[1:]][: len(query)]


@given(st.lists(SEGMENTED, min_size=1, max_size=4))
def test_segments_stand_beside_their_tokens(rows: list[tuple[list[int], list[int] | None]]) -> None:
    """-1 beside padding and in contexts that have none; no tensor where no context has any."""
    context = collate([example(ids, [[1]], segments) for ids, segments in rows])["batch"].context
    assert [ids[mask].tolist() for ids, mask in zip(context.ids, context.mask, strict=True)] == [
        ids for ids, _ in rows
    ]
    if all(segments is None for _, segments in rows):
        assert context.segments is None
        return
    assert context.segments is not None
    assert (context.segments[~context.mask] == -1).all()
    for (ids, segments), found, mask in zip(rows, context.segments, context.mask, strict=True):
        assert found[mask].tolist() == ([-1] * len(ids) if segments is None else segments)


def test_every_token_has_its_segment() -> None:
    with pytest.raises(ValueError, match="1 segments of 2 tokens"):
        Example([1, 2], [], [], [0])


@given(st.lists(st.lists(ROW, min_size=1, max_size=4), min_size=1, max_size=4))
def test_queries_are_filled_up(given_: list[Rows]) -> None:
    """Every query with its labels is in its place, and behind them are empty ones."""
    batch = collate([example([], queries) for queries in given_])["batch"]
    assert batch.queries.ids.shape[:2] == (len(given_), max(map(len, given_)))
    for row, queries in enumerate(given_):
        for column in range(batch.queries.ids.shape[1]):
            mask = batch.queries.mask[row, column]
            query = queries[column] if column < len(queries) else []
            assert batch.queries.ids[row, column][mask].tolist() == query
            assert batch.labels[row, column][mask].tolist() == labels_of(query)
            assert (batch.labels[row, column][~mask] == IGNORED).all()


RAGGED = [
    example([5, 6, 7], [[1, 2, 3], [4, 5], [9, 8, 7, 6]]),
    example([8], [[2, 9, 9]]),
    example([7, 7], [[3, 1], [1, 3, 1]]),
]


def outcome(memory: Memory, batch: Batch) -> tuple[list[Tensor], Tensor, Tensor]:
    """The loss with its gradients, and what was right of what was asked."""
    output = training_loss(memory, batch)
    loss = output.losses["target"]
    weights = [weight for weight in memory.parameters() if weight.requires_grad]
    return [loss, *torch.autograd.grad(loss, weights)], output.exact, output.labelled


def check_ragged(memory: Memory) -> None:
    """As many examples with one query each, their contexts repeated, have the same loss and gradients."""
    found, exact, asked = outcome(memory, collate(RAGGED)["batch"])
    single = [
        Example(e.context, [query], [labels])
        for e in RAGGED
        for query, labels in zip(e.queries, e.labels, strict=True)
    ]
    expected, each, all_asked = outcome(memory, collate(single)["batch"])
    assert asked.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert all_asked.all()
    assert exact[asked].tolist() == each.flatten().tolist()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "pair", [("no-memory", "no-memory"), ("full-context", "key-value")], ids=lambda pair: pair[0]
)
def test_empty_queries_count_for_nothing(
    build: Build, pair: tuple[str, str], attention: str
) -> None:
    check_ragged(build(*pair, attention=attention, trainable=True).train())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_empty_queries_count_for_nothing_behind_a_prefix(family: str) -> None:
    check_ragged(scattering(family).train())


def test_a_query_that_asks_for_nothing_is_told() -> None:
    """Its exact match means nothing; without a memory the first token cannot be asked for."""
    memory = scattering()
    queries = [[4, 5], [6, 7], [8]]
    labels = [[IGNORED, IGNORED], [6, IGNORED], [IGNORED]]
    batch = collate([Example([1], queries, labels)])["batch"]
    assert training_loss(memory, batch).labelled.tolist() == [[False, True, False]]
