"""A kept text is read as if it stood before the query."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import (
    Rows,
    families,
    padded_rows,
    plain_generate,
    plain_logits,
    query_batches,
    tolerance,
)
from memwrite_text import retrieve
from memwrite_text.sentences import SentenceNumbers

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError, InputError
from memwrite.inference.prefill_cache import PrefillCache
from memwrite.state import MemoryState

pytestmark = pytest.mark.filterwarnings("ignore:memory and text are longer")

#: Absolute positions, rotary ones, a sliding window, and recurrent layers beside attention.
FAMILIES = ("gpt2", "llama", "mistral", "lfm2")
ROWS = [[5, 6, 7, 8, 9, 40], [], [11, 12]]


def build(writer: str, family: str = "llama", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": families.model(family),
            "writer": {"name": writer, "params": params},
            "reader": {"name": "text"},
        }
    ).eval()


MEMORIES = {3: build("last-tokens", tokens=3), None: build("whole-text")}
READ = {family: build("whole-text", family) for family in FAMILIES}


def kept(state: MemoryState) -> list[list[int]]:
    """The ids of each row."""
    return [ids[mask].tolist() for ids, mask in zip(state["ids"], state["mask"], strict=True)]


@pytest.mark.parametrize("tokens", [3, None])
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_kept_is_the_end_of_all_that_was_written(tokens: int | None, data: Any) -> None:
    memory = MEMORIES[tokens]
    first, context = data.draw(padded_rows(3))
    second, more = data.draw(padded_rows(3))
    state = memory.write(more, memory.write(context).state).state
    rows = [a + b for a, b in zip(first, second, strict=True)]
    assert kept(state) == [row[-tokens:] if tokens else row for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(data=st.data())
def test_logits_are_those_of_text_and_query_in_sight(family: str, data: Any) -> None:
    """Rows of any lengths, some of them empty, with many queries each."""
    memory = READ[family]
    lists, query = data.draw(query_batches())
    batch, each, _ = query.ids.shape
    rows, context = data.draw(padded_rows(batch))
    with torch.no_grad():
        output = memory.read(memory.write(context).state, query)
    for index, ids in enumerate(lists):
        b, q = divmod(index, each)
        before = len(rows[b])
        if not before + len(ids):
            continue
        expected = plain_logits(memory, rows[b] + ids)
        found = output.logits[b, q][query.mask[b, q]]
        torch.testing.assert_close(found, expected[before:], **tolerance(family))
        if output.first_logits is not None:
            first = expected[before - 1] if before else torch.zeros_like(expected[0])
            torch.testing.assert_close(output.first_logits[b], first, **tolerance(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("query", [[], [70, 71]])
def test_text_is_continued_from_its_own_end(family: str, query: Rows) -> None:
    """Beside longer rows, and beside one without any token, which opens a text where nothing is asked."""
    memory = build("last-tokens", family, tokens=5)
    state = memory.write(Tokens.from_rows(ROWS)).state
    found = memory.generate(state, Tokens.from_rows([query] * 3), max_new_tokens=5)
    for row, ids in enumerate(ROWS):
        whole = ids[-5:] + query or [memory.backbone.info.bos_id]
        expected = plain_generate(memory.model, {}, input_ids=torch.tensor([whole]))[0]
        assert found[row].tolist()[: len(expected) - len(whole)] == expected[len(whole) :].tolist()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
def test_a_run_without_a_cache_reads_the_same() -> None:
    memory = build("last-tokens", tokens=5)
    state = memory.write(Tokens.from_rows(ROWS)).state
    query = Tokens.from_rows([[70, 71], [72], [73, 74, 75]])
    with torch.no_grad():
        expected = memory.read(state, query)
        memory.model.train()
        memory.model.gradient_checkpointing_enable()
        assert not memory.backbone.supports_cache
        found = memory.read(state, query)
    torch.testing.assert_close(found.logits, expected.logits, **tolerance("llama"))
    torch.testing.assert_close(found.first_logits, expected.first_logits, **tolerance("llama"))


def test_prefilled_texts_of_different_lengths_are_kept_apart() -> None:
    memory = build("last-tokens", tokens=5)
    query = Tokens.from_rows([[70, 71]] * 3)
    state = memory.write(Tokens.from_rows(ROWS)).state
    with torch.no_grad():
        expected = memory.read(state, query)
        memory.prefills = PrefillCache()
        for row in range(3):
            memory.read(state.rows(slice(row, row + 1)), query.rows(slice(0, 1)))
        found = memory.read(state, query)
    torch.testing.assert_close(found.logits, expected.logits, **tolerance("llama"))
    torch.testing.assert_close(found.first_logits, expected.first_logits, **tolerance("llama"))


def test_sentences_end_with_stops_and_lines() -> None:
    numbers = SentenceNumbers(MEMORIES[None].backbone)
    text = "Is it 3.5? Yes!! It is.\n\nSo"
    found = numbers(torch.tensor([list(text.encode())]))[0].tolist()
    pieces = ["".join(c for c, n in zip(text, found, strict=True) if n == i) for i in range(4)]
    assert pieces == ["Is it 3.5?", " Yes!!", " It is.\n\n", "So"]


def test_bad_input_is_refused_in_a_sentence() -> None:
    memory = build("last-tokens", tokens=5)
    with pytest.raises(ConfigError, match="tokens must be at least 1"):
        build("last-tokens", tokens=0)
    state = memory.write(Tokens.from_rows(ROWS)).state
    query = Tokens.from_rows([[70]] * 3)
    foreign = MemoryState(state.spec, {**state.tensors, "ids": state["ids"] + 300})
    with pytest.raises(InputError, match="written for another model"):
        memory.read(foreign, query)
    holes = MemoryState(state.spec, {**state.tensors, "mask": state["mask"].flip(1)})
    with pytest.raises(InputError, match="padding stands before a token"):
        memory.read(holes, query)
    with pytest.raises(InputError, match="at least 1 sentence"):
        retrieve(state, query, sentences=0)
    with pytest.raises(InputError, match="one for each row"):
        retrieve(state, query.rows(slice(0, 2)), sentences=1)
