"""Retrieval: the sentences of a kept text that share rare words with a query."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.errors import InputError
from memwrite.state import MemoryState, Tokens
from memwrite_text.kind import TEXT, text_spec, text_state

K1 = 1.2  # how soon a term's further occurrences in a sentence cease to count
B = 0.75  # how much a long sentence is marked down


def retrieve(state: MemoryState, query: Tokens, sentences: int) -> MemoryState:
    """Return the text of each row's best sentences for its query, in the order of the text.

    Terms are token ids: a state holds no others, and they need neither a tokenizer nor rules of any language. The price
    is that a word with a capital letter is another term. Tokens that open or close a text are no terms, and stay.

    Args:
        state: B texts, of the kind "text".
        query: (B, T), one for each row.
        sentences: how many are taken; all, where a row has no more. Of equally good ones the earlier are.

    Returns:
        A state for the same reader.

    Raises:
        InputError: the state is of another kind, the query is of other rows, or no sentence is asked for.
    """
    if state.spec.kind != TEXT.name:
        raise InputError(f"sentences are found in 'text' states, not in '{state.spec.kind}' states")
    if sentences < 1:
        raise InputError(f"at least 1 sentence must be taken, got {sentences}")
    if query.ids.ndim != 2 or query.ids.shape[0] != state.batch_size:
        raise InputError(
            f"the state holds {state.batch_size} rows, but the query is {tuple(query.ids.shape)}: give one for each row"
        )
    query = query.to(state["ids"].device)
    mask = state["mask"].clone()
    counts = state["mask"] & (state["sentence"] >= 0)
    for row, real in enumerate(counts):
        scores = bm25(
            state["ids"][row, real], state["sentence"][row, real], query.ids[row, query.mask[row]]
        )
        best = scores.argsort(descending=True, stable=True)[:sentences]
        mask[row] &= ~real | torch.isin(state["sentence"][row], best)
    packed = Tokens(state["ids"], mask, state["sentence"]).packed()
    assert packed.segments is not None
    return text_state(text_spec(packed.ids.shape[1], bounded=False), packed, packed.segments)


def bm25(ids: Tensor, sentence: Tensor, query: Tensor) -> Tensor:
    """Score every sentence of a text for a query.

    BM25 of Robertson and Zaragoza (2009), equation 3.15, with sentences for documents. The weight of a term that
    n of N sentences have is ln(1 + (N - n + 0.5) / (n + 0.5)), where the 1, as in Lucene, keeps it above 0.

    Args:
        ids: (T,) of the text.
        sentence: (T,), the number of the sentence of each.
        query: (Q,); a term counts as often as it is there.

    Returns:
        (S,) float64, S being the highest number and 1.
    """
    lengths = sentence.bincount().double()
    found = (ids[:, None] == query).double()
    count = found.new_zeros(len(lengths), len(query)).index_add(0, sentence, found)
    having = (count > 0).double().sum(0)
    present = (lengths > 0).sum()
    weight = (1 + (present - having + 0.5) / (having + 0.5)).log()
    long = 1 - B + B * lengths / lengths.sum() * present
    scores = (weight * count * (K1 + 1) / (count + K1 * long[:, None])).sum(1)
    return scores.masked_fill(lengths == 0, -torch.inf)
