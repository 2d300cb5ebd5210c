"""Every read and every generation equals the naive run of transformers alone: one row, no cache, no padding."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MODELS
from torch import Tensor
from torch.nn import functional as F

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.config import BackboneConfig, Config
from memwrite.errors import ConfigError, InputError
from memwrite.loading import load_backbone
from memwrite.protocols import Conditioning
from memwrite.readers import KeyValueReader, PrefixReader
from memwrite.reading import read

TIED = {**MODELS["llama"]["params"], "tie_word_embeddings": True}
FAMILIES: dict[str, dict[str, Any]] = {**MODELS, "llama-tied": {"type": "llama", "params": TIED}}
CASES = [(family, attention) for family in FAMILIES for attention in ("eager", "sdpa")]
SLOTS = 3
POSITIONS = 64

each_backbone = pytest.mark.parametrize(("family", "attention"), CASES)


def bar(family: str) -> dict[str, float]:
    """Llama's norm computes in float32 whatever the model's dtype."""
    return {"atol": 1e-9, "rtol": 1e-9} if family == "gpt2" else {"atol": 1e-5, "rtol": 1e-5}


def config(family: str, attention: str, **changes: Any) -> BackboneConfig:
    return BackboneConfig(
        **{**FAMILIES[family], "dtype": "float64", "attention": attention, **changes}
    )


def reader_only(reader: Any, described: BackboneConfig) -> Memory:
    return Memory(load_backbone(described), None, reader, Config(described))


@cache
def prefixed(family: str, attention: str) -> Memory:
    return reader_only(PrefixReader(), config(family, attention)).eval()


@cache
def built(family: str, attention: str, writer: str, reader: str) -> Memory:
    model = {**FAMILIES[family], "dtype": "float64", "attention": attention}
    return Memory.from_config(
        {"backbone": model, "writer": {"name": writer}, "reader": {"name": reader}}
    )


def memories(rows: int) -> MemoryState:
    draw = torch.Generator().manual_seed(7)
    values = torch.randn(rows, SLOTS, 32, dtype=torch.float64, generator=draw)
    spec = StateSpec("prefix", {"memory": (SLOTS, 32)}, dtype=torch.float64)
    return MemoryState(spec, {"memory": values})


def naive(memory: Memory, prefix: Tensor | None, ids: list[int]) -> Tensor:
    """Logits (slots + len(ids), V) of transformers' own forward."""
    embeddings = memory.backbone.embed(torch.tensor([ids], dtype=torch.int64))
    if prefix is not None:
        embeddings = torch.cat([prefix[None], embeddings], 1)
    if not embeddings.shape[1]:
        return embeddings.new_zeros(0, memory.backbone.info.vocab_size)
    logits: Tensor = memory.model(inputs_embeds=embeddings, use_cache=False).logits[0]
    return logits


Lists = list[list[int]]


@st.composite
def padded(draw: Any, rows: int | None = None, longest: int = 5) -> tuple[Lists, Tokens]:
    """Rows of tokens, and the same with padding of any id left, right and between."""
    count = draw(st.integers(1, 3)) if rows is None else rows
    tokens = st.lists(st.integers(0, 257), max_size=longest)
    lists = draw(st.lists(tokens, min_size=count, max_size=count).filter(any))
    width = max(map(len, lists)) + draw(st.integers(0, 2))
    ids = torch.full((count, width), draw(st.integers(0, 257)))
    mask = torch.zeros(count, width, dtype=torch.bool)
    for row, real in enumerate(lists):
        columns = st.sets(st.integers(0, width - 1), min_size=len(real), max_size=len(real))
        places = sorted(draw(columns))
        ids[row, places] = torch.tensor(real, dtype=torch.int64)
        mask[row, places] = True
    return lists, Tokens(ids, mask)


@st.composite
def many(draw: Any) -> tuple[Lists, Tokens]:
    """Queries (B, Q, T), their B·Q rows of tokens beside them."""
    batch, each = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    lists, flat = draw(padded(batch * each))
    return lists, flat.map(lambda tensor: tensor.reshape(batch, each, -1))


@each_backbone
@settings(max_examples=30)
@given(queries=many())
def test_a_prefix_before_any_queries(
    family: str, attention: str, queries: tuple[Lists, Tokens]
) -> None:
    """B states with Q ragged queries each: logits and `first` are those of each alone, zero at padding."""
    lists, query = queries
    memory, (batch, each, _) = prefixed(family, attention), query.ids.shape
    state = memories(batch)
    output = memory.read(state, query)
    assert output.logits.shape == (*query.ids.shape, 258)
    assert output.first is not None
    assert output.first.shape == (batch, 258)
    for index, ids in enumerate(lists):
        b, q = divmod(index, each)
        expected = naive(memory, state["memory"][b], ids)
        torch.testing.assert_close(
            output.logits[b, q][query.mask[b, q]], expected[SLOTS:], **bar(family)
        )
        torch.testing.assert_close(output.first[b], expected[SLOTS - 1], **bar(family))
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
    assert output.first is None
    once = memory.write(Tokens.from_rows([a + b for a, b in zip(before, after, strict=True)])).state
    torch.testing.assert_close(memory.read(once, query).logits, output.logits, **bar(family))
    for index, ids in enumerate(lists):
        b, q = divmod(index, each)
        context = before[b] + after[b]
        expected = naive(memory, None, context + ids)[len(context) :]
        torch.testing.assert_close(output.logits[b, q][query.mask[b, q]], expected, **bar(family))


@each_backbone
@settings(max_examples=25)
@given(rows=padded())
def test_no_memory_is_the_plain_model(
    family: str, attention: str, rows: tuple[Lists, Tokens]
) -> None:
    memory, (lists, query) = built(family, attention, "no-memory", "no-memory"), rows
    output = memory.read(memory.write(query).state, query)
    for row, ids in enumerate(lists):
        expected = naive(memory, None, ids)
        torch.testing.assert_close(output.logits[row][query.mask[row]], expected, **bar(family))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("shape", [(2, 0), (2, 2, 3)])
def test_queries_without_any_token(family: str, shape: tuple[int, ...]) -> None:
    """They still get `first`; there are no logits to give."""
    memory, state = prefixed(family, "sdpa"), memories(2)
    ids = torch.zeros(shape, dtype=torch.int64)
    output = memory.read(state, Tokens(ids, torch.zeros(shape, dtype=torch.bool)))
    assert output.logits.shape == (*shape, 258)
    assert (output.logits == 0).all()
    assert output.first is not None
    for row in range(2):
        expected = naive(memory, state["memory"][row], [])[-1]
        torch.testing.assert_close(output.first[row], expected, **bar(family))


@pytest.mark.parametrize(
    ("writer", "reader"), [("no-memory", "no-memory"), ("full-context", "key-value")]
)
def test_queries_without_any_token_and_without_a_prefix(writer: str, reader: str) -> None:
    memory = built("gpt2", "eager", writer, reader)
    output = memory.read(memory.write("some text").state, Tokens.from_rows([[]]))
    assert output.logits.shape == (1, 0, 258)
    assert output.first is None


OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_beams": 2},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 4, "length_penalty": -1.0, "early_stopping": True},
    {"repetition_penalty": 3.0},
]


def alone(memory: Memory, embeddings: Tensor, end: int, options: dict[str, Any]) -> Tensor:
    """What transformers' own generate gives for embeddings (1, T, D)."""
    new: Tensor = memory.model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.int64),
        eos_token_id=end,
        pad_token_id=end,
        do_sample=False,
        **options,
    )
    return new


def common_end(memory: Memory, state: MemoryState) -> int:
    """A token that greedy generation does reach, so that rows stop at different lengths."""
    token: int = memory.generate(state, max_new_tokens=3)[0, 2].item()
    return token


@each_backbone
@settings(max_examples=10)
@given(data=st.data(), options=st.sampled_from(OPTIONS[:4]), stops=st.booleans())
def test_generation_behind_a_prefix(
    family: str, attention: str, data: Any, options: dict[str, Any], stops: bool
) -> None:
    """Greedy and beams, ragged and empty queries: the tokens that transformers gives each row alone."""
    memory = prefixed(family, attention)
    lists, query = data.draw(many())
    batch, each, _ = query.ids.shape
    state = memories(batch)
    end = common_end(memory, state) if stops else 257
    options = {**options, "max_new_tokens": 5}
    copies = options.get("num_return_sequences", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory.backbone.codec, "end", end)
        new = memory.generate(state, query, **options)
    assert new.shape[:-1] == ((batch, each) if copies == 1 else (batch * each * copies,))
    rows = new.reshape(batch * each, copies, -1)
    for index, ids in enumerate(lists):
        behind = memory.backbone.embed(torch.tensor([ids], dtype=torch.int64))
        embeddings = torch.cat([state["memory"][index // each][None], behind], 1)
        expected = alone(memory, embeddings, end, options)
        missing = new.shape[-1] - expected.shape[-1]
        assert torch.equal(rows[index], F.pad(expected, (0, missing), value=end))


@each_backbone
@settings(max_examples=8)
@given(data=st.data(), options=st.sampled_from(OPTIONS))
def test_generation_behind_the_full_context(
    family: str, attention: str, data: Any, options: dict[str, Any]
) -> None:
    memory = built(family, attention, "full-context", "key-value")
    context, tokens = data.draw(padded(2))
    ids, query = data.draw(padded(2).filter(lambda drawn: all(drawn[0])))
    options = {key: value for key, value in options.items() if key != "repetition_penalty"}
    new = memory.generate(memory.write(tokens).state, query, max_new_tokens=5, **options)
    rows = new.reshape(2, -1, new.shape[-1])
    for row in range(2):
        whole = torch.tensor([context[row] + ids[row]])
        expected = memory.model.generate(
            whole,
            attention_mask=torch.ones_like(whole),
            eos_token_id=257,
            pad_token_id=257,
            do_sample=False,
            max_new_tokens=5,
            **options,
        )[:, whole.shape[1] :]
        missing = new.shape[-1] - expected.shape[-1]
        assert torch.equal(rows[row], F.pad(expected, (0, missing), value=257))


@each_backbone
def test_rows_stop_at_the_end_token(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing follows the first end token but end tokens, and what stands before it is unchanged."""
    memory, state = prefixed(family, attention), memories(3)
    free = memory.generate(state, max_new_tokens=6)
    end = int(free[0, 3])
    monkeypatch.setattr(memory.backbone.codec, "end", end)
    new = memory.generate(state, max_new_tokens=6)
    assert end in new[0].tolist()
    for row, whole in zip(new.tolist(), free.tolist(), strict=True):
        length = whole.index(end) if end in whole else len(row)
        assert row[:length] == whole[: len(row)][:length]
        assert set(row[length:]) <= {end}


@each_backbone
@pytest.mark.parametrize("beams", [1, 3])
def test_an_empty_query_continues_the_memory_itself(
    family: str, attention: str, beams: int
) -> None:
    memory, state = prefixed(family, attention), memories(2)
    options = {"num_beams": beams, "max_new_tokens": 4}
    new = memory.generate(state, **options)
    for row in range(2):
        expected = alone(memory, state["memory"][row : row + 1], 257, options)
        assert new[row].tolist()[: expected.shape[1]] == expected[0].tolist()


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_come_in_turn_for_each_query(family: str, beams: int) -> None:
    """n continuations per query, of the query's own memory: certain samples equal greedy search."""
    memory, state = prefixed(family, "sdpa"), memories(2)
    query = Tokens.from_rows([[1, 2], [3]])
    drawn = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 4}
    torch.manual_seed(0)
    new = memory.generate(state, query, num_beams=max(beams, 3 if beams > 1 else 1), **drawn)
    assert new.shape == (6, 4)
    assert len({tuple(row) for row in new.tolist()}) > 2
    if beams == 1:
        certain = memory.generate(state, query, top_k=1, **drawn)
        greedy = memory.generate(state, query, max_new_tokens=4)
        assert torch.equal(certain, greedy.repeat_interleave(3, 0))


@pytest.mark.parametrize("wanted", [0, -3])
def test_a_count_of_new_tokens_below_one_is_refused(wanted: int) -> None:
    memory, state = prefixed("gpt2", "sdpa"), memories(1)
    with pytest.raises((InputError, ConfigError), match="max_new_tokens"):
        memory.generate(state, max_new_tokens=wanted)


def test_no_more_tokens_than_positions() -> None:
    """Memory, query and continuation share the model's positions."""
    memory, state = prefixed("gpt2", "sdpa"), memories(1)
    last = memory.generate(state, Tokens.from_rows([[1] * (POSITIONS - SLOTS - 1)]))
    assert last.shape == (1, 1)
    full = Tokens.from_rows([[1] * (POSITIONS - SLOTS)])
    assert memory.read(state, full).logits.shape[1] == POSITIONS - SLOTS
    with pytest.raises(InputError, match="64 positions"):
        memory.generate(state, full)
    with pytest.raises(InputError, match="65 positions"):
        memory.read(state, Tokens.from_rows([[1] * (POSITIONS - SLOTS + 1)]))


def trainable(family: str, attention: str, checkpointing: bool) -> Memory:
    memory = reader_only(PrefixReader(), config(family, attention, trainable=True)).train()
    if checkpointing:
        memory.model.gradient_checkpointing_enable()
    return memory


def gradients(memory: Memory, query: Tokens) -> tuple[Tensor, list[Tensor]]:
    """A loss over logits and `first`, and its gradients to the prefix and to every weight."""
    prefix = memories(2)["memory"].requires_grad_()
    output = read(memory.backbone, Conditioning(prefix=prefix), query)
    assert output.first is not None
    loss = output.logits.sin().sum() + output.first.cos().sum()
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
    described = config(family, "sdpa", trainable=True)
    memory = reader_only(KeyValueReader(), described)
    state = built(family, "sdpa", "full-context", "key-value").write("abc").state
    expected = memory.eval().read(state, Tokens.from_rows([[1, 2]])).logits
    memory.model.gradient_checkpointing_enable()
    assert torch.equal(memory.read(state, Tokens.from_rows([[1, 2]])).logits, expected)
    with pytest.raises(ConfigError, match="checkpointing"):
        memory.train().read(state, Tokens.from_rows([[1, 2]]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", MODELS)
def test_generation_while_training_with_checkpointing(family: str) -> None:
    """Generation keeps keys and values whatever the model's mode."""
    memory = trainable(family, "sdpa", checkpointing=True)
    query = Tokens.from_rows([[1, 2], [3]])
    new = memory.generate(memories(2), query, max_new_tokens=4)
    assert memory.model.training
    assert torch.equal(new, memory.eval().generate(memories(2), query, max_new_tokens=4))
