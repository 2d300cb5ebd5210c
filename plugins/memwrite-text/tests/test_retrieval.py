"""BM25 against a plain loop, and the text that it leaves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_specs.testing import MODELS
from memwrite_text import retrieve
from memwrite_text.retrieval import bm25

from memwrite import Memory, Tokens

terms = st.lists(st.integers(0, 6), min_size=1, max_size=6)


def naive(texts: list[list[int]], query: list[int]) -> list[float]:
    """BM25 as it is written down: one sum over the query's terms for each sentence."""
    average = sum(len(text) for text in texts) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for term in query:
            having = sum(term in other for other in texts)
            weight = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            count = text.count(term)
            score += weight * count * 2.2 / (count + 1.2 * (1 - 0.75 + 0.75 * len(text) / average))
        scores.append(score)
    return scores


@given(st.lists(terms, min_size=1, max_size=6), st.lists(st.integers(0, 6), max_size=5))
def test_scores_are_those_of_the_plain_loop(texts: list[list[int]], query: list[int]) -> None:
    ids = torch.tensor([term for text in texts for term in text])
    sentence = torch.tensor([number for number, text in enumerate(texts) for _ in text])
    found = bm25(ids, sentence, torch.tensor(query, dtype=torch.int64))
    torch.testing.assert_close(found, torch.tensor(naive(texts, query), dtype=torch.float64))


TEXTS = [
    "The mill stands by the river. A cat sleeps in it. The cat eats a mouse. Nobody comes.",
    "Paris is large. Rome is old.",
    "",
]
QUERIES = ["Where does the cat sleep?", "How old is Rome?", "Who?"]


def rows(texts: list[str]) -> Tokens:
    return Tokens.from_rows([list(text.encode()) for text in texts])


@pytest.fixture(scope="module")
def memory() -> Memory:
    backbone = {**MODELS["llama"], "dtype": "float64"}
    backbone["params"] = {**backbone["params"], "max_position_embeddings": 256}
    parts = {"writer": {"name": "whole-text"}, "reader": {"name": "text"}}
    return Memory.from_config({"backbone": backbone, **parts}).eval()


@torch.no_grad()
def test_what_is_found_is_read_like_a_text_of_its_own(memory: Memory) -> None:
    state = memory.write(rows(TEXTS)).state
    found = retrieve(state, rows(QUERIES), sentences=1)
    texts = [
        bytes(i[m].tolist()).decode() for i, m in zip(found["ids"], found["mask"], strict=True)
    ]
    assert texts[1:] == [" Rome is old.", ""]
    alone = memory.write(rows(texts)).state
    torch.testing.assert_close(
        memory.read(found, rows(QUERIES)).logits, memory.read(alone, rows(QUERIES)).logits
    )


def test_tokens_that_open_or_close_a_text_are_no_terms_and_stay(memory: Memory) -> None:
    """A query that is closed by the end token does not find the sentence that the end token closes."""
    info = memory.backbone.info
    text = [info.bos_id, *b"A cat sleeps. Rome is old. So?", info.eos_id]
    query = Tokens.from_rows([[info.bos_id, *b"Where is the cat?", info.eos_id]])
    state = memory.write(Tokens.from_rows([text])).state
    found = retrieve(state, query, sentences=1)["ids"][0].tolist()
    assert found == [info.bos_id, *b"A cat sleeps.", info.eos_id]


def test_sentences_stand_in_the_order_of_the_text(memory: Memory) -> None:
    state = memory.write(rows(TEXTS)).state
    for count in range(1, 5):
        found = retrieve(state, rows(QUERIES), sentences=count)
        numbers = found["sentence"][0][found["mask"][0]]
        assert len(numbers.unique()) == count
        assert (numbers.diff() >= 0).all()
    for name in ("ids", "mask", "sentence"):
        assert torch.equal(found[name], state[name])


def test_a_row_does_not_depend_on_its_neighbours(memory: Memory) -> None:
    state = memory.write(rows(TEXTS)).state
    found = retrieve(state, rows(QUERIES), sentences=2)
    for row in range(3):
        alone = retrieve(
            memory.write(rows(TEXTS[row : row + 1])).state, rows(QUERIES[row : row + 1]), 2
        )
        assert found["ids"][row][found["mask"][row]].tolist() == alone["ids"][0].tolist()
