"""Models with recurrent layers: what the library computes equals one pass of transformers alone, however a text is cut,
padded and batched."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import families
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import (
    HYBRIDS,
    Rows,
    end_padded,
    padded_rows,
    plain_generate,
    query_batches,
)
from naive import SLOTS, memories, naive
from support import reader_only, without_params
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError, InputError
from memwrite.inference import generate as generating
from memwrite.inference import online
from memwrite.inference import read as reading
from memwrite.plugins.builtin.readers import PrefixReader
from memwrite.protocols import Conditioning, KeyValues, LayerActivations, StaticAdapter

each_family = pytest.mark.parametrize("family", HYBRIDS)
OPTIONS: list[dict[str, Any]] = [{}, {"num_beams": 4, "num_return_sequences": 2}]
#: These keep their states in float32, whatever the dtype of the model.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@cache
def prefixed(family: str) -> Memory:
    return reader_only(without_params(PrefixReader), BackboneConfig(**families.model(family)))


def alone(memory: Memory, ids: list[int]) -> Tensor:
    """Return the logits (T, V) of transformers' own pass over one text."""
    logits: Tensor = memory.model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def read_in(backbone: TransformersBackbone, pieces: list[Rows]) -> KeyValues | None:
    """Read the pieces of each row's text, one after the other."""
    past = None
    for rows in pieces:
        tokens = Tokens.from_rows(rows)
        past = backbone.forward(
            backbone.embed(tokens.ids), past=past, lengths=tokens.lengths, use_cache=True
        ).key_values
    return past


@each_family
def test_sizes_are_those_of_what_is_kept(family: str) -> None:
    backbone = prefixed(family).backbone
    info, ids = backbone.info, torch.arange(12)[None]
    kept = backbone.forward(backbone.embed(ids), use_cache=True).key_values
    assert kept is not None
    slots = 12 if info.layers else 0
    sizes = (
        (1, info.layers, info.kv_heads, slots, info.head_dim) if info.layers else (1, 0, 0, 0, 0)
    )
    assert kept.keys.shape == kept.values.shape == sizes
    assert kept.mask.shape == (1, slots)
    assert kept.next_position.tolist() == [12]
    assert kept.recurrent is not None
    assert kept.recurrent.keys() == backbone.recurrent.keys()
    for layer, states in kept.recurrent.items():
        assert {n: (tuple(t.shape[1:]), t.dtype) for n, t in states.items()} == {
            n: (spec.shape, spec.dtype) for n, spec in backbone.recurrent[layer].items()
        }
    assert info.architecture == family


@each_family
@settings(max_examples=4)
@given(data=st.data())
def test_a_text_in_pieces_is_the_text(family: str, data: Any) -> None:
    """Rows of any lengths, each cut anywhere, empty pieces included: logits of the last piece are those of one pass."""
    memory = prefixed(family)
    backbone = memory.backbone
    count = data.draw(st.integers(1, 3))
    pieces = [data.draw(padded_rows(count, 6))[0] for _ in range(data.draw(st.integers(1, 2)))]
    last = data.draw(padded_rows(count, 6))[0]
    past = read_in(backbone, pieces)
    tokens = Tokens.from_rows(last)
    if not tokens.ids.shape[1]:
        return
    hidden = backbone.forward(backbone.embed(tokens.ids), past=past, lengths=tokens.lengths).hidden
    logits = backbone.logits(hidden)
    for row, ids in enumerate(last):
        before = [token for piece in pieces for token in piece[row]]
        if ids:
            expected = alone(memory, before + ids)[len(before) :]
            torch.testing.assert_close(
                logits[row, : len(ids)], expected, check_dtype=False, **CLOSE
            )


@each_family
def test_token_by_token_is_the_text(family: str) -> None:
    memory = prefixed(family)
    backbone, ids = memory.backbone, [*range(30, 41)]
    past, found = None, []
    for token in ids:
        run = backbone.forward(backbone.embed(torch.tensor([[token]])), past=past, use_cache=True)
        past = run.key_values
        found.append(backbone.logits(run.hidden)[0])
    torch.testing.assert_close(torch.cat(found), alone(memory, ids), check_dtype=False, **CLOSE)


@each_family
@settings(max_examples=4)
@given(queries=query_batches(5))
def test_a_prefix_before_any_queries(family: str, queries: tuple[Rows, Tokens]) -> None:
    lists, query = queries
    memory, (batch, each, _) = prefixed(family), query.ids.shape
    state = memories(batch)
    output = memory.read(state, query)
    assert output.first_logits is not None
    for index, ids in enumerate(lists):
        b, q = divmod(index, each)
        expected = naive(memory, state["memory"][b], ids).double()
        found = output.logits[b, q][query.mask[b, q]].double()
        torch.testing.assert_close(found, expected[SLOTS:], **CLOSE)
        torch.testing.assert_close(output.first_logits[b].double(), expected[SLOTS - 1], **CLOSE)


@each_family
@pytest.mark.parametrize("options", OPTIONS)
def test_generation_behind_a_prefix(family: str, options: dict[str, Any]) -> None:
    memory, state = prefixed(family), memories(3)
    lists: Rows = [[1, 2, 3, 4, 5], [], [6]]
    new = memory.generate(state, Tokens.from_rows(lists), max_new_tokens=5, **options)
    rows = new.reshape(3, -1, new.shape[-1])
    for row, ids in enumerate(lists):
        behind = memory.backbone.embed(torch.tensor([ids], dtype=torch.int64))
        embeddings = torch.cat([state["memory"][row : row + 1], behind], 1)
        expected = plain_generate(memory.model, options, inputs_embeds=embeddings)
        assert torch.equal(rows[row], end_padded(expected, new.shape[-1]))


@each_family
@pytest.mark.parametrize("options", OPTIONS)
def test_generation_behind_what_was_read(family: str, options: dict[str, Any]) -> None:
    """From a state that was kept, rows of different lengths, generation is that of the whole text."""
    memory = prefixed(family)
    texts: Rows = [[*range(9)], [20, 21, 22]]
    queries: Rows = [[40, 41, 42], [43]]
    conditioning = Conditioning(key_values=read_in(memory.backbone, [texts]))
    asked = {"max_new_tokens": 5, **options}
    new = generating.generate(memory.backbone, conditioning, Tokens.from_rows(queries), asked)
    rows = new.reshape(2, -1, new.shape[-1])
    for row, ids in enumerate(queries):
        whole = torch.tensor([texts[row] + ids])
        expected = plain_generate(memory.model, options, input_ids=whole)[:, whole.shape[1] :]
        assert torch.equal(rows[row], end_padded(expected, new.shape[-1]))


@each_family
def test_keys_and_values_alone_are_a_memory_of_the_attention_layers(family: str) -> None:
    """Recurrent layers begin afresh behind them, and neighbours and padding change nothing."""
    memory = prefixed(family)
    backbone = memory.backbone
    texts: Rows = [[*range(9)], [20, 21, 22]]
    queries = Tokens.from_rows([[40, 41, 42], [43]])
    past = read_in(backbone, [texts])
    assert past is not None
    past = replace(past, recurrent=None)
    output = reading.read(backbone, Conditioning(key_values=past), queries).logits
    for row, count in enumerate([3, 1]):
        one = Conditioning(key_values=read_in(backbone, [[texts[row]]]))
        assert one.key_values is not None
        whole = reading.read(backbone, one, queries.rows(slice(row, row + 1))).logits[0, :count]
        one = Conditioning(key_values=replace(one.key_values, recurrent=None))
        single = reading.read(backbone, one, queries.rows(slice(row, row + 1))).logits[0, :count]
        torch.testing.assert_close(output[row, :count], single, **CLOSE)
        assert not torch.allclose(single, whole, atol=1e-2)
        if not backbone.info.layers:
            begun = alone(memory, queries.ids[row, :count].tolist())
            torch.testing.assert_close(single, begun, check_dtype=False, **CLOSE)


@each_family
def test_attention_layers_are_observed(family: str) -> None:
    backbone = prefixed(family).backbone
    tokens = Tokens.from_rows([[1, 2, 3, 4, 5], [6, 7]])
    seen: list[LayerActivations] = []
    run = backbone.forward(
        backbone.embed(tokens.ids), lengths=tokens.lengths, use_cache=True, observe=seen.append
    )
    assert run.key_values is not None
    assert [each.layer for each in seen] == [*range(backbone.info.layers)]
    for each in seen:
        torch.testing.assert_close(each.keys, run.key_values.keys[:, each.layer])
        torch.testing.assert_close(each.values, run.key_values.values[:, each.layer])


@each_family
def test_gradients_go_through_what_was_kept(family: str) -> None:
    """Of a loss behind a prefix that was read once, to the prefix: as through one pass without a cache."""
    backbone = prefixed(family).backbone
    prefix = memories(1)["memory"].requires_grad_()
    embeddings = backbone.embed(torch.tensor([[1, 2, 3, 4]]))
    kept = backbone.forward(prefix, use_cache=True).key_values
    parts = backbone.forward(embeddings, past=kept).hidden.double().sin().sum()
    whole = (
        backbone.forward(torch.cat([prefix, embeddings], 1)).hidden[:, SLOTS:].double().sin().sum()
    )
    (found,), (expected,) = (torch.autograd.grad(loss, prefix) for loss in (parts, whole))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert expected.abs().max() > 1e-3


def test_online_writes_keep_no_padding() -> None:
    """Rows of different lengths are read together, but a past that padding had gone into is refused."""
    config = {"writer": {"name": "delta"}, "reader": {"name": "lora", "params": {"init": "random"}}}
    memory = Memory.from_config({"backbone": families.model("bamba"), **config})
    tokens = Tokens.from_rows([[1, 2, 3, 4], [5]])
    both = memory.write(tokens).state
    logits = memory.read(both, tokens).logits
    for row, ids in enumerate([[1, 2, 3, 4], [5]]):
        one = Tokens.from_rows([ids])
        state = memory.write(one).state
        torch.testing.assert_close(both.rows(slice(row, row + 1))["S"], state["S"], **CLOSE)
        torch.testing.assert_close(
            logits[row, : len(ids)], memory.read(state, one).logits[0], **CLOSE
        )
    parts = memory.components
    assert parts.writer is not None
    with pytest.raises(ConfigError, match="give one text at a time"):
        online.run(
            memory.backbone, parts.writer, None, tokens, memory.writer.init(2), use_cache=True
        )


def test_what_recurrent_layers_cannot_do_is_one_sentence() -> None:
    backbone = prefixed("mamba2").backbone
    adapter = StaticAdapter({}, lambda _tensors, hidden: {"q": torch.zeros_like(hidden)})
    with pytest.raises(ConfigError, match="has 0 layers with attention"):
        backbone.forward(backbone.embed(torch.tensor([[1]])), corrections={0: adapter})
    query = Tokens.from_rows([[1]])
    with pytest.raises(InputError, match="not for models with recurrent layers"):
        generating.generate(
            backbone, Conditioning(), query, {"cache_implementation": "static", "max_new_tokens": 1}
        )
    kept = read_in(backbone, [[[1, 2]]])
    assert kept is not None
    with pytest.raises(ValueError, match="cannot go back"):
        kept.drop_last()


@pytest.mark.parametrize(("writer", "reader"), [("full-context", "key-value"), ("delta", "lora")])
def test_memories_for_attention_are_refused_where_there_is_none(writer: str, reader: str) -> None:
    config = {"writer": {"name": writer}, "reader": {"name": reader}}
    with pytest.raises(ConfigError, match="take a writer of another kind"):
        Memory.from_config({"backbone": families.model("mamba2"), **config})
