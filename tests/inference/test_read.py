"""Every read equals the naive run of transformers alone: one row, no cache, no padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import Rows, tolerance
from naive import SLOTS, built, many, memories, naive, padded, prefixed, trainable
from support import MODELS, described, each_backbone, reader_only, without_params
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError, InputError
from memwrite.inference.generate import generate
from memwrite.inference.read import read
from memwrite.plugins.builtin.readers import KeyValueReader
from memwrite.protocols import Conditioning, KeyValues


@each_backbone
@settings(max_examples=30)
@given(queries=many())
def test_a_prefix_before_any_queries(
    family: str, attention: str, queries: tuple[Rows, Tokens]
) -> None:
    """B states with Q ragged queries each: logits and `first` are those of each alone, zero at padding."""
    lists, query = queries
    memory, (batch, each, _) = prefixed(family, attention), query.ids.shape
    state = memories(batch)
    output = memory.read(state, query)
    assert output.logits.shape == (*query.ids.shape, 258)
    assert output.first_logits is not None
    assert output.first_logits.shape == (batch, 258)
    for index, ids in enumerate(lists):
        b, q = divmod(index, each)
        expected = naive(memory, state["memory"][b], ids)
        torch.testing.assert_close(
            output.logits[b, q][query.mask[b, q]], expected[SLOTS:], **tolerance(family)
        )
        torch.testing.assert_close(output.first_logits[b], expected[SLOTS - 1], **tolerance(family))
        assert (output.logits[b, q][~query.mask[b, q]] == 0).all()


@each_backbone
@settings(max_examples=25)
@given(data=st.data())
def test_the_full_context_before_any_queries(family: str, attention: str, data: Any) -> None:
    """Written in one part or in two, ragged and padded anyhow, it is [context; query] as the model runs it."""
    memory = built(family, attention, "full-context", "key-value")
    lists, query = data.draw(many())
    batch, each, _ = query.ids.shape
    before, first = data.draw(padded(batch))
    after, second = data.draw(padded(batch))
    state = memory.write(second, memory.write(first).state).state
    assert state["next_position"].tolist() == [
        len(a) + len(b) for a, b in zip(before, after, strict=True)
    ]
    output = memory.read(state, query)
    assert output.first_logits is None
    once = memory.write(Tokens.from_rows([a + b for a, b in zip(before, after, strict=True)])).state
    torch.testing.assert_close(memory.read(once, query).logits, output.logits, **tolerance(family))
    for index, ids in enumerate(lists):
        b, q = divmod(index, each)
        context = before[b] + after[b]
        expected = naive(memory, None, context + ids)[len(context) :]
        torch.testing.assert_close(
            output.logits[b, q][query.mask[b, q]], expected, **tolerance(family)
        )


@each_backbone
@settings(max_examples=25)
@given(rows=padded())
def test_no_memory_is_the_plain_model(
    family: str, attention: str, rows: tuple[Rows, Tokens]
) -> None:
    memory, (lists, query) = built(family, attention, "no-memory", "no-memory"), rows
    output = memory.read(memory.write(query).state, query)
    for row, ids in enumerate(lists):
        expected = naive(memory, None, ids)
        torch.testing.assert_close(
            output.logits[row][query.mask[row]], expected, **tolerance(family)
        )


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("shape", [(2, 0), (2, 2, 3)])
def test_queries_without_any_token(family: str, shape: tuple[int, ...]) -> None:
    """They still get `first`; there are no logits to give."""
    memory, state = prefixed(family, "sdpa"), memories(2)
    ids = torch.zeros(shape, dtype=torch.int64)
    output = memory.read(state, Tokens(ids, torch.zeros(shape, dtype=torch.bool)))
    assert output.logits.shape == (*shape, 258)
    assert (output.logits == 0).all()
    assert output.first_logits is not None
    for row in range(2):
        expected = naive(memory, state["memory"][row], [])[-1]
        torch.testing.assert_close(output.first_logits[row], expected, **tolerance(family))


@pytest.mark.parametrize(
    ("writer", "reader"), [("no-memory", "no-memory"), ("full-context", "key-value")]
)
def test_queries_without_any_token_and_without_a_prefix(writer: str, reader: str) -> None:
    memory = built("gpt2", "eager", writer, reader)
    output = memory.read(memory.write("some text").state, Tokens.from_rows([[]]))
    assert output.logits.shape == (1, 0, 258)
    assert output.first_logits is None


def gradients(memory: Memory, query: Tokens) -> tuple[Tensor, list[Tensor]]:
    """A loss over logits and `first`, and its gradients to the prefix and to every weight."""
    prefix = memories(2)["memory"].requires_grad_()
    output = read(memory.backbone, Conditioning(prefix=prefix), query)
    assert output.first_logits is not None
    loss = output.logits.sin().sum() + output.first_logits.cos().sum()
    return loss, list(torch.autograd.grad(loss, [prefix, *memory.model.parameters()]))


RAGGED = Tokens(
    torch.tensor([[[1, 2, 3], [0, 4, 5]], [[6, 0, 7], [0, 0, 8]]]),
    torch.tensor([[[1, 1, 1], [0, 1, 1]], [[1, 0, 1], [0, 0, 1]]]).bool(),
)


@each_backbone
def test_gradients_equal_those_of_the_naive_run(family: str, attention: str) -> None:
    """Through a prefix that is shared by all queries of its row."""
    memory = trainable(family, attention, checkpointing=False)
    loss, found = gradients(memory, RAGGED)
    prefix = memories(2)["memory"].requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        for q in range(2):
            ids = RAGGED.ids[b, q][RAGGED.mask[b, q]].tolist()
            expected = expected + naive(memory, prefix[b], ids)[SLOTS:].sin().sum()
        expected = expected + naive(memory, prefix[b], [])[-1].cos().sum()
    wanted = torch.autograd.grad(expected, [prefix, *memory.model.parameters()])
    scale = {"atol": 1e-8, "rtol": 1e-8} if family == "gpt2" else {"atol": 1e-3, "rtol": 1e-3}
    torch.testing.assert_close(loss, expected, **scale)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **scale)


@each_backbone
@pytest.mark.filterwarnings("ignore")
def test_checkpointing_changes_no_loss_and_no_gradient(family: str, attention: str) -> None:
    plain, found = (
        gradients(trainable(family, attention, checkpointing), RAGGED)
        for checkpointing in (False, True)
    )
    scale = {"atol": 1e-8, "rtol": 1e-8} if family == "gpt2" else {"atol": 1e-3, "rtol": 1e-3}
    torch.testing.assert_close(found[0], plain[0], **scale)
    for one, other in zip(found[1], plain[1], strict=True):
        torch.testing.assert_close(one, other, **scale)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", MODELS)
def test_checkpointing_never_drops_keys_and_values_in_silence(family: str) -> None:
    """The key-value reader says so; outside training it works as ever."""
    config = described(family, "sdpa", trainable=True)
    memory = reader_only(without_params(KeyValueReader), config)
    state = built(family, "sdpa", "full-context", "key-value").write("abc").state
    expected = memory.eval().read(state, Tokens.from_rows([[1, 2]])).logits
    memory.model.gradient_checkpointing_enable()
    assert torch.equal(memory.read(state, Tokens.from_rows([[1, 2]])).logits, expected)
    with pytest.raises(ConfigError, match="checkpointing"):
        memory.train().read(state, Tokens.from_rows([[1, 2]]))


@each_backbone
def test_a_prefix_of_no_vectors_is_none(family: str, attention: str) -> None:
    memory = reader_only(without_params(KeyValueReader), described(family, attention))
    query = Tokens.from_rows([[1, 2, 3], [4]])
    empty = Conditioning(prefix=torch.zeros(2, 0, 32, dtype=torch.float64))
    found, expected = (read(memory.backbone, c, query) for c in (empty, Conditioning()))
    assert found.first_logits is None
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0)
    new = [
        generate(memory.backbone, c, query, {"max_new_tokens": 3}) for c in (empty, Conditioning())
    ]
    assert torch.equal(*new)


def test_a_memory_in_float32_is_read_by_a_model_of_half_precision() -> None:
    """Keys and values of a reader of one's own, too."""
    memory = reader_only(without_params(KeyValueReader), described("llama", dtype="bfloat16"))
    info = memory.backbone.info
    shape = (2, info.layers, info.kv_heads, 3, info.head_dim)
    keys, values = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    past = KeyValues(keys, values, torch.ones(2, 3, dtype=torch.bool), torch.full((2,), 3))
    query = Tokens.from_rows([[1, 2], [3]])
    found = read(memory.backbone, Conditioning(key_values=past), query).logits
    half = replace(past, keys=keys.bfloat16(), values=values.bfloat16())
    expected = read(memory.backbone, Conditioning(key_values=half), query).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("parts", [("gradient", "prefix"), ("full-context", "key-value")])
def test_a_memory_of_another_model_is_refused(parts: tuple[str, str]) -> None:
    writer, reader = ({"name": name} for name in parts)
    sizes = {**MODELS["llama"]["params"], "hidden_size": 64}
    one, other = (
        Memory.from_config({"backbone": backbone, "writer": writer, "reader": reader})
        for backbone in (MODELS["llama"], {"type": "llama", "params": sizes})
    )
    with pytest.raises(InputError, match="another model"):
        other.ask(one.write("abc").state, "x")
