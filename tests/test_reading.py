"""Reads and generation equal the naive run: one row, one query, no cache, no padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MODELS, Build
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError, InputError
from memwrite.protocols import Conditioning
from memwrite.reading import read
from memwrite.state import MemoryState, StateSpec

LOOSE = {"atol": 1e-5, "rtol": 1e-5}


def memories(rows: int, slots: int = 3) -> MemoryState:
    values = torch.randn(
        rows, slots, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    return MemoryState(
        StateSpec("prefix", {"memory": (slots, 32)}, dtype=torch.float64), {"memory": values}
    )


def prefixed(build: Build, **changes: Any) -> Memory:
    return build("gradient", "prefix", {"slots": 3, "order": "none"}, **changes)


def naive(memory: Memory, prefix: Tensor | None, ids: list[int]) -> Tensor:
    """Logits (len(prefix) + len(ids), V) of transformers' own forward."""
    embeddings = memory.backbone.embed(torch.tensor([ids], dtype=torch.int64))
    if prefix is not None:
        embeddings = torch.cat([prefix[None], embeddings], 1)
    logits: Tensor = memory.model(inputs_embeds=embeddings).logits[0]
    return logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prefix_reads_equal_the_naive_run(build: Build, attention: str) -> None:
    """Any padding, many queries per state: each row's logits and `first` are what it gets alone."""
    memory, state = prefixed(build, attention=attention), memories(2)
    ids = torch.tensor([[[1, 2, 3, 4], [9, 9, 5, 6]], [[9, 7, 9, 8], [9, 9, 9, 9]]])
    output = memory.read(state, Tokens(ids, ids != 9))
    assert output.first is not None
    for b in range(2):
        for q in range(2):
            real = ids[b, q] != 9
            expected = naive(memory, state["memory"][b], ids[b, q][real].tolist())
            torch.testing.assert_close(output.logits[b, q][real], expected[3:], **LOOSE)
            torch.testing.assert_close(output.first[b], expected[2], **LOOSE)
            assert (output.logits[b, q][~real] == 0).all()


@settings(max_examples=10)
@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), min_size=1, max_size=3),
    st.data(),
)
def test_full_context_equals_the_models_own_output(rows: list[list[int]], data: Any) -> None:
    """Reading behind a kept context is running [context; query], ragged rows included."""
    for model in MODELS.values():
        backbone = {**model, "dtype": "float64", "attention": "eager"}
        memory = Memory.from_config(
            {
                "backbone": backbone,
                "writer": {"name": "full-context"},
                "reader": {"name": "key-value"},
            }
        )
        cuts = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
        context = Tokens.from_rows([row[:cut] for row, cut in zip(rows, cuts, strict=True)])
        query = Tokens.from_rows([row[cut:] for row, cut in zip(rows, cuts, strict=True)])
        output = memory.read(memory.write(context).state, query)
        for b, (row, cut) in enumerate(zip(rows, cuts, strict=True)):
            expected = naive(memory, None, row)[cut:]
            torch.testing.assert_close(output.logits[b, : len(row) - cut], expected, **LOOSE)


def test_writing_the_full_context_in_two_parts_is_writing_it_once(build: Build) -> None:
    memory = build("full-context", "key-value")
    first, second = Tokens.from_rows([[1, 2, 3], [4]]), Tokens.from_rows([[5], [6, 7]])
    state = memory.write(second, memory.write(first).state).state
    whole = memory.write(Tokens.from_rows([[1, 2, 3, 5], [4, 6, 7]])).state
    query = Tokens.from_rows([[8, 9], [10]])
    parts, once = (memory.read(s, query).logits for s in (state, whole))
    torch.testing.assert_close(parts, once, **LOOSE)
    assert state["next_position"].tolist() == whole["next_position"].tolist() == [4, 3]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generation_equals_transformers_own(build: Build, options: dict[str, Any]) -> None:
    """Greedy and beams, ragged queries, many per state: the tokens that generate() gives each alone."""
    memory, state = prefixed(build), memories(2)
    ids = torch.tensor([[[1, 2, 3], [4, 9, 9]], [[9, 5, 6], [7, 8, 9]]])
    new = memory.generate(state, Tokens(ids, ids != 9), max_new_tokens=6, **options)
    ends = {"eos_token_id": 257, "pad_token_id": 257, "do_sample": False}
    for b in range(2):
        for q in range(2):
            real = ids[b, q][ids[b, q] != 9][None]
            inputs = torch.cat([state["memory"][b : b + 1], memory.backbone.embed(real)], 1)
            expected = memory.model.generate(
                inputs_embeds=inputs,
                attention_mask=torch.ones(inputs.shape[:2]),
                max_new_tokens=6,
                **ends,
                **options,
            )
            padded = torch.full((6,), 257)
            padded[: expected.shape[1]] = expected[0]
            assert new[b, q].tolist() == padded.tolist()[: new.shape[-1]]


def test_a_memory_speaks_first_without_a_query(build: Build) -> None:
    """With an empty query the first token is predicted from the last memory slot."""
    memory, state = prefixed(build), memories(2)
    new = memory.generate(state, max_new_tokens=4)
    for b in range(2):
        ids: list[int] = []
        for _ in range(4):
            ids.append(int(naive(memory, state["memory"][b], ids)[-1].argmax()))
        assert new[b].tolist() == ids


def test_without_any_memory_a_text_is_opened(build: Build) -> None:
    """No memory and no query: generation starts from the start token, as the plain model does."""
    for memory in (build(), build("full-context", "key-value")):
        state = memory.writer.init(1)
        expected = int(naive(memory, None, [256])[-1].argmax())
        assert memory.generate(state, max_new_tokens=1).tolist() == [[expected]]


def test_sampling_gives_the_rows_asked_for(build: Build) -> None:
    memory, state = prefixed(build), memories(2)
    query = Tokens.from_rows([[1], [2, 3]])
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5}
    assert memory.generate(state, query, **options).shape == (6, 5)


def test_generation_stops_where_the_positions_end(build: Build) -> None:
    memory, state = prefixed(build), memories(1)
    long = Tokens.from_rows([[1] * 55])
    assert memory.generate(state, long, max_new_tokens=99).shape[1] <= 64 - 3 - 55
    with pytest.raises(InputError, match="64 positions"):
        memory.generate(state, Tokens.from_rows([[1] * 61]))
    with pytest.raises(InputError, match="70 positions are needed"):
        memory.read(state, Tokens.from_rows([[1] * 67]))
    with pytest.raises(InputError, match="1 rows, but the query 2"):
        memory.read(state, Tokens.from_rows([[1], [2]]))


def gradients(memory: Memory, start: Tensor, checkpointing: bool) -> list[Tensor]:
    memory.train()
    if checkpointing:
        memory.model.activation_checkpointing_enable()
    memory.zero_grad()
    prefix = start.clone().requires_grad_()
    ids = torch.tensor([[[1, 2, 3], [4, 5, 9]], [[6, 9, 9], [7, 8, 1]]])
    output = read(memory.backbone, Conditioning(prefix=prefix), Tokens(ids, ids != 9))
    assert output.first is not None
    (output.logits.square().sum() + output.first.square().sum()).backward()
    assert prefix.grad is not None
    return [prefix.grad, *(p.grad for p in memory.model.parameters() if p.grad is not None)]


def test_gradients_through_a_shared_prefix_and_under_checkpointing(build: Build) -> None:
    """The prefix's gradient over all its queries is that of the naive run; checkpointing changes nothing."""
    memory, start = prefixed(build, trainable=True), memories(2)["memory"]
    plain = gradients(memory, start, checkpointing=False)
    checked = gradients(memory, start, checkpointing=True)
    prefix = start.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for b, queries in enumerate(([[1, 2, 3], [4, 5]], [[6], [7, 8, 1]])):
        for query in queries:
            total = total + naive(memory, prefix[b], query)[3:].square().sum()
        total = total + naive(memory, prefix[b], [])[2].square().sum()
    (expected,) = torch.autograd.grad(total, prefix)
    torch.testing.assert_close(plain[0], expected, **LOOSE)
    for a, b in zip(plain, checked, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_checkpointing_refuses_to_drop_keys_and_values(build: Build) -> None:
    """transformers drops caches under checkpointing without a word; we say it."""
    memory = build("full-context", "key-value", trainable=True)
    state = memory.write(Tokens.from_rows([[1, 2]])).state
    memory.train()
    memory.model.activation_checkpointing_enable()
    with pytest.raises(ConfigError, match="checkpointing"):
        memory.read(state, Tokens.from_rows([[3]]))
