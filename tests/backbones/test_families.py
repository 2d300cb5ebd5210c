"""Every family of models: what the library computes equals the naive run of transformers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import EVERY, WINDOW
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import (
    LONGEST,
    Rows,
    end_padded,
    plain_generate,
    plain_logits,
    query_batches,
    tolerance,
)
from naive import SLOTS, memories, naive, padded
from support import reader_only, without_params
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig
from memwrite.plugins.builtin.readers import PrefixReader
from memwrite.protocols import Conditioning, ProjectionDeltas, StaticAdapter

each_family = pytest.mark.parametrize("family", EVERY)
ATTENTION = st.sampled_from(["eager", "sdpa"])
OPTIONS: list[dict[str, Any]] = [{}, {"num_beams": 4, "num_return_sequences": 2}]
pytestmark = pytest.mark.filterwarnings("ignore:memory and text are longer")


@cache
def prefixed(family: str, attention: str) -> Memory:
    return reader_only(
        without_params(PrefixReader), BackboneConfig(**families.model(family, attention))
    )


@each_family
def test_the_windows_of_these_models_matter(family: str) -> None:
    """Else the tests below would say nothing: one more layer type than full attention, and its mask bites."""
    memory = prefixed(family, "eager")
    config = memory.model.config
    if "sliding_window" not in EVERY[family]:
        assert memory.backbone.windows.size is None
        return
    assert memory.backbone.windows.size == WINDOW
    ids = torch.arange(3 * WINDOW)[None]
    before = memory.model(ids).logits
    kept, config.sliding_window = config.sliding_window, 1000
    try:
        assert not torch.allclose(memory.model(ids).logits, before, atol=0.1)
    finally:
        config.sliding_window = kept


@each_family
def test_sizes_are_those_of_the_kept_keys(family: str) -> None:
    backbone = prefixed(family, "sdpa").backbone
    info, ids = backbone.info, torch.arange(2 * WINDOW)[None]
    kept = backbone.forward(backbone.embed(ids), use_cache=True).key_values
    assert kept is not None
    assert kept.keys.shape == (1, info.layers, info.kv_heads, 2 * WINDOW, info.head_dim)
    assert kept.values.shape == kept.keys.shape
    assert (info.architecture, info.positions, info.vocab_size) == (
        families.architecture(family),
        64,
        258,
    )
    assert info.heads * info.head_dim == families.weight(backbone.model, 0, "q").shape[0]
    # Gemma 2 caps the scores of its attention, so it is always eager.
    assert info.double_backward == (family == "gemma2")
    assert prefixed(family, "eager").backbone.info.double_backward


@each_family
@settings(max_examples=4)
@given(data=st.data(), attention=ATTENTION)
def test_the_full_context_before_any_queries(family: str, attention: str, data: Any) -> None:
    """Written in two parts, ragged and padded anyhow, it is [context; query] as the model itself runs it."""
    memory = families.built(family, attention, "full-context", "key-value")
    lists, query = data.draw(query_batches())
    batch, each, _ = query.ids.shape
    before, first = data.draw(padded(batch, LONGEST))
    after, second = data.draw(padded(batch, LONGEST))
    state = memory.write(second, memory.write(first).state).state
    output = memory.read(state, query)
    for index, ids in enumerate(lists):
        b, q = divmod(index, each)
        context = before[b] + after[b]
        if ids:
            expected = plain_logits(memory, context + ids)[len(context) :]
            torch.testing.assert_close(
                output.logits[b, q][query.mask[b, q]], expected, **tolerance(family)
            )


@each_family
@settings(max_examples=4)
@given(queries=query_batches(), attention=ATTENTION)
def test_a_prefix_before_any_queries(
    family: str, attention: str, queries: tuple[Rows, Tokens]
) -> None:
    """B states with Q ragged queries each: logits and `first` are those of each alone."""
    lists, query = queries
    memory, (batch, each, _) = prefixed(family, attention), query.ids.shape
    state = memories(batch)
    output = memory.read(state, query)
    assert output.first_logits is not None
    for index, ids in enumerate(lists):
        b, q = divmod(index, each)
        expected = naive(memory, state["memory"][b], ids)
        torch.testing.assert_close(
            output.logits[b, q][query.mask[b, q]], expected[SLOTS:], **tolerance(family)
        )
        torch.testing.assert_close(output.first_logits[b], expected[SLOTS - 1], **tolerance(family))


@each_family
@settings(max_examples=3)
@given(data=st.data(), attention=ATTENTION, options=st.sampled_from(OPTIONS))
def test_generation_behind_a_prefix(
    family: str, attention: str, data: Any, options: dict[str, Any]
) -> None:
    memory = prefixed(family, attention)
    lists, query = data.draw(padded(2, LONGEST))
    state = memories(2)
    new = memory.generate(state, query, max_new_tokens=5, **options)
    rows = new.reshape(2, -1, new.shape[-1])
    for row, ids in enumerate(lists):
        behind = memory.backbone.embed(torch.tensor([ids], dtype=torch.int64))
        embeddings = torch.cat([state["memory"][row : row + 1], behind], 1)
        expected = plain_generate(memory.model, options, inputs_embeds=embeddings)
        assert torch.equal(rows[row], end_padded(expected, new.shape[-1]))


@each_family
@settings(max_examples=3)
@given(data=st.data(), attention=ATTENTION, options=st.sampled_from(OPTIONS))
def test_generation_behind_the_full_context(
    family: str, attention: str, data: Any, options: dict[str, Any]
) -> None:
    memory = families.built(family, attention, "full-context", "key-value")
    context, tokens = data.draw(padded(2, LONGEST))
    ids, query = data.draw(padded(2, LONGEST).filter(lambda drawn: all(drawn[0])))
    new = memory.generate(memory.write(tokens).state, query, max_new_tokens=5, **options)
    rows = new.reshape(2, -1, new.shape[-1])
    for row in range(2):
        whole = torch.tensor([context[row] + ids[row]])
        expected = plain_generate(memory.model, options, input_ids=whole)[:, whole.shape[1] :]
        assert torch.equal(rows[row], end_padded(expected, new.shape[-1]))


# ---- corrections -------------------------------------------------------------------------------


class EveryProjection(nn.Module):
    """Adds W x to q, k, v and o of every layer, with the row's own W."""

    accepts = frozenset({"matrices"})

    def condition(self, state: MemoryState, /) -> Conditioning:
        return Conditioning(
            prefix=state["memory"],
            corrections={
                layer: StaticAdapter({n: state[n][:, layer] for n in "qkvo"}, _add)
                for layer in state.spec.layers
            },
        )


def _add(tensors: Mapping[str, Tensor], hidden: Tensor) -> ProjectionDeltas:
    return {
        **{name: hidden @ tensors[name].mT for name in "qkv"},
        "o": lambda inputs: inputs @ tensors["o"].mT,
    }


@cache
def corrected(family: str, attention: str) -> Memory:
    return reader_only(EveryProjection(), BackboneConfig(**families.model(family, attention)))


def matrices(model: nn.Module, rows: int) -> MemoryState:
    draw = torch.Generator().manual_seed(3)
    layers = model.config.num_hidden_layers
    shapes = {n: (layers, *families.weight(model, 0, n).shape) for n in "qkvo"}
    shapes["memory"] = (SLOTS, 32)
    tensors = {
        name: 0.1 * torch.randn(rows, *shape, dtype=torch.float64, generator=draw)
        for name, shape in shapes.items()
    }
    spec = StateSpec("matrices", shapes, tuple(range(layers)), torch.float64)
    return MemoryState(spec, tensors)


@contextmanager
def edited(model: nn.Module, state: MemoryState, row: int) -> Iterator[None]:
    """The plain model with one row's corrections worked into its weights, until the block is left."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in state.spec.layers:
        for name in "qkvo":
            families.add(model, layer, name, state[name][row, layer])
    try:
        yield
    finally:
        model.load_state_dict(kept)


# Projections lie outside of the attention function, so that one of the two is enough for a family.
@pytest.mark.parametrize(("family", "attention"), [*zip(EVERY, cycle(["eager", "sdpa"]))])
def test_corrections_are_those_of_the_edited_model(family: str, attention: str) -> None:
    """In every row, through reads, greedy search and beams; before norms of queries and keys, packed or not."""
    memory = corrected(family, attention)
    pristine = load_backbone(BackboneConfig(**families.model(family, attention))).model
    state, lists = matrices(pristine, 2), [[1, 2, 3, 4, 5, 6, 7], [8, 9]]
    query = Tokens.from_rows(lists)
    output = memory.read(state, query)
    unchanged = naive(memory, state["memory"][0], lists[0])[SLOTS:]
    assert (output.logits[0] - unchanged).abs().max() > 0.1
    new = [memory.generate(state, query, max_new_tokens=5, **options) for options in OPTIONS]
    for options, rows in zip(OPTIONS, new, strict=True):
        static = {"cache_implementation": "static", "max_new_tokens": 5, **options}
        assert torch.equal(memory.generate(state, query, **static), rows)
    for row, ids in enumerate(lists):
        embeddings = torch.cat(
            [state["memory"][row][None], memory.backbone.embed(torch.tensor([ids]))], 1
        )
        with edited(pristine, state, row):
            logits = pristine(inputs_embeds=embeddings, use_cache=False).logits[0]
            wanted = [plain_generate(pristine, o, inputs_embeds=embeddings) for o in OPTIONS]
        found = output.logits[row, : len(ids)]
        torch.testing.assert_close(found, logits[SLOTS:], **tolerance(family))
        for rows, expected in zip(new, wanted, strict=True):
            own = rows.reshape(2, -1, rows.shape[-1])[row]
            assert torch.equal(own, end_padded(expected, rows.shape[-1]))


# ---- writing by gradients ----------------------------------------------------------------------


@each_family
def test_a_gradient_write_is_descent_through_the_model(family: str) -> None:
    """Two steps on ragged rows equal those of each row alone; second order reaches the learned start."""
    memory = Memory.from_config(
        {
            "backbone": families.model(family, "eager"),
            "writer": {"name": "gradient", "params": {"slots": SLOTS, "steps": 2, "lr": 0.5}},
            "reader": {"name": "prefix"},
        }
    )
    lists = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11]]
    state = memory.write(Tokens.from_rows(lists)).state
    for row, ids in enumerate(lists):
        slots, targets = memory.writer.init(1)["memory"].detach(), torch.tensor(ids)
        for _ in range(2):
            slots = slots.requires_grad_()
            behind = memory.model.get_input_embeddings()(targets)[None]
            logits = memory.model(inputs_embeds=torch.cat([slots, behind], 1)).logits[0]
            loss = F.cross_entropy(logits[SLOTS - 1 : -1].double(), targets)
            slots = (slots - 0.5 * torch.autograd.grad(loss, slots)[0]).detach()
        torch.testing.assert_close(state["memory"][row], slots[0], atol=1e-4, rtol=1e-3)
    memory.train()
    trained = memory.write(Tokens.from_rows(lists)).state
    output = memory.read(trained, Tokens.from_rows([[1, 2], [3]]))
    output.logits.sin().sum().backward()
    start = [p.grad for p in memory.writer.parameters() if p.numel()]
    assert start
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in start)


# ---- folders -----------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("tied", [False, True])
def test_from_a_folder(family: str, tied: bool, tmp_path: Path) -> None:
    """The same model with the same fingerprint, its embeddings tied or not; attention is no part of either."""
    first, second = families.saved(tmp_path, family, "sdpa", tie_word_embeddings=tied)
    shared = (
        second.backbone.head.data_ptr() == second.model.get_input_embeddings().weight.data_ptr()
    )
    assert shared == tied
    assert second.backbone.info == first.backbone.info
    assert second.backbone.fingerprint == first.backbone.fingerprint
    eager = BackboneConfig(path=str(tmp_path), dtype="float64", attention="eager")
    assert load_backbone(eager).fingerprint == first.backbone.fingerprint
    query = Tokens.from_rows([[1, 2, 3, 4, 5, 6, 7], [8]])
    outputs = [memory.read(memories(2), query).logits for memory in (first, second)]
    torch.testing.assert_close(outputs[1], outputs[0], **tolerance(family))
    expected = plain_logits(second, [1, 2, 3])
    ids = torch.tensor([[1, 2, 3]])
    hidden = second.backbone.forward(second.backbone.embed(ids)).hidden
    torch.testing.assert_close(second.backbone.logits(hidden)[0], expected, **tolerance(family))
    second.backbone.head[5] += 1
    assert second.backbone.fingerprint != first.backbone.fingerprint


@pytest.mark.filterwarnings("error")
@each_family
def test_memory_beyond_the_window_is_announced(family: str) -> None:
    """By reads and by generation, and only where a window is left."""
    memory, state = prefixed(family, "sdpa"), memories(1)
    short = Tokens.from_rows([[1] * (WINDOW - SLOTS)])
    long = Tokens.from_rows([[1] * (WINDOW - SLOTS + 1)])
    memory.read(state, short)
    memory.generate(state, short, max_new_tokens=1)
    for act in (
        lambda: memory.read(state, long),
        lambda: memory.generate(state, short, max_new_tokens=2),
    ):
        if memory.backbone.windows.size is None:
            act()
        else:
            with pytest.warns(UserWarning, match=f"sliding window of {WINDOW} tokens"):
                act()
