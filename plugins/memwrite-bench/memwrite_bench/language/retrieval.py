"""Retrieval beside the memories: the sentences of the kept text are found anew for each stretch of what follows.

As in-context RALM does it (Ram et al. 2023, arXiv 2302.00083): the query is what was read last.
"""

from __future__ import annotations

from collections.abc import Sequence

from memwrite_text import retrieve

from memwrite.evaluation.value_kept import Prediction, predict
from memwrite.memory import Memory
from memwrite.state import MemoryState, Tokens

#: What configs of the report call it, and its writer and reader.
NAME, WRITER, READER = "bm25", "whole-text", "text"
#: Tokens that are predicted with the same sentences, and those that they are found for.
STRETCH, QUERY = 32, 32


def predict_by_retrieval(
    memory: Memory,
    state: MemoryState,
    contexts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    sentences: int,
) -> list[Prediction]:
    """Predict texts of one length, each behind the sentences that BM25 finds in its own kept text.

    Args:
        memory: with the reader of texts.
        state: the kept texts.
        contexts: what each of them was, whose end is the first query.
        texts: what follows.
        sentences: that are found for each stretch.
    """
    length = len(texts[0])
    bits: list[list[float]] = [[] for _ in texts]
    choices: list[list[int]] = [[] for _ in texts]
    for start in range(0, length, STRETCH):
        stop = min(start + STRETCH, length)
        if stop < 2:
            continue
        read = [[*context, *text[:start]] for context, text in zip(contexts, texts, strict=True)]
        query = Tokens.from_rows([ids[-QUERY:] for ids in read])
        found = retrieve(state, query, sentences)
        new = slice(max(start - 1, 0), None)  # the first token of a text is not predicted
        for row, own in enumerate(predict(memory, found, [text[:stop] for text in texts])):
            bits[row] += own.bits[new]
            choices[row] += own.choices[new]
    return [
        Prediction(tuple(b), tuple(c), sum(x == y for x, y in zip(c, text[1:], strict=True)))
        for b, c, text in zip(bits, choices, texts, strict=True)
    ]
