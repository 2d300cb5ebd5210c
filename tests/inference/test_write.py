"""Memory.write and Memory.forward, over a throw-away writer whose every promise can be computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import Rows
from scatter import (
    LONG,
    ROOM,
    ROW,
    ROWS,
    SEEDS,
    SLOTS,
    WIDTH,
    Scatter,
    backbone,
    scattering,
    spread,
)
from support import MODELS, described, without_params

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.config import Config, PartConfig
from memwrite.errors import (
    ConfigError,
    ContractViolation,
    DivergenceError,
    IncompatiblePair,
    InputError,
    MemwriteError,
)
from memwrite.plugins.builtin.readers import KeyValueReader, PrefixReader
from memwrite.protocols import WriteOutput


@settings(max_examples=30)
@given(LONG, SEEDS)
def test_chunks_are_writes_one_after_the_other(lists: Rows, seed: int) -> None:
    """State carried over, losses weighted by each row's tokens, traces in a row, padding gone before."""
    memory, other = scattering(), scattering()
    assume(any(lists))
    written = memory.write(spread(lists, seed))
    state, losses, trace = other.writer.init(len(lists)), torch.zeros(len(lists)), []
    longest = max(max(map(len, lists)), 1)
    for start in range(0, longest, ROOM):
        parts = [row[start : start + ROOM] for row in lists]
        step = other.writer.write(state, Tokens.from_rows(parts))
        weights = [len(part) / max(len(row), 1) for part, row in zip(parts, lists, strict=True)]
        losses = losses + step.losses["energy"] * torch.tensor(weights)
        trace.append(step.trace["energy"])
        state = step.state
    assert torch.equal(written.state["memory"], state["memory"])
    assert torch.equal(written.trace["energy"], torch.cat(trace))
    assert [chunk.ids.shape[1] for chunk in memory.writer.seen] == [
        min(ROOM, max(map(len, lists)) - start) for start in range(0, longest, ROOM)
    ]
    if longest > ROOM:
        torch.testing.assert_close(written.losses["energy"].float(), losses.float())


@pytest.mark.parametrize("family", MODELS)
@settings(max_examples=30)
@given(lists=ROWS, others=st.lists(ROW, min_size=4, max_size=4), seed=SEEDS)
def test_neighbours_and_padding_change_nothing(
    family: str, lists: Rows, others: Rows, seed: int
) -> None:
    """Through write and read: each row is what it is alone and unpadded."""
    memory = scattering(family).eval()
    others = others[: len(lists)]
    before = spread(others, seed + 1)
    state = memory.write(spread(lists, seed), memory.write(before).state).state
    query = spread([[*row[::-1], 1] for row in others], seed + 2)
    output = memory.read(state, query)
    assert output.first_logits is not None
    for row, ids in enumerate(lists):
        only = slice(row, row + 1)
        started = memory.write(before.rows(only).packed()).state
        alone = memory.write(Tokens.from_rows([ids]), started).state
        torch.testing.assert_close(alone["memory"][0], state["memory"][row], atol=1e-12, rtol=1e-12)
        single = memory.read(alone, query.rows(only).packed())
        bar = 1e-9 if family == "gpt2" else 1e-5
        torch.testing.assert_close(
            output.logits[row][query.mask[row]], single.logits[0], atol=bar, rtol=bar
        )
        torch.testing.assert_close(
            output.first_logits[row], single.first_logits[0], atol=bar, rtol=bar
        )


@settings(max_examples=20)
@given(ROWS, SEEDS)
def test_a_write_is_a_function_of_state_and_context(lists: Rows, seed: int) -> None:
    """The same again, bit for bit; its inputs are left as they were, and what follows changes it no more."""
    memory, context = scattering(), spread(lists, seed)
    weights = {name: weight.clone() for name, weight in memory.state_dict().items()}
    copy, random = context.clone(), torch.get_rng_state()
    state = memory.write(spread(lists[::-1], seed)).state
    held = state.clone()
    first = memory.write(context, state).state
    kept = first.clone()
    assert torch.equal(memory.write(context, state).state["memory"], first["memory"])
    assert torch.equal(context.ids, copy.ids)
    assert torch.equal(context.mask, copy.mask)
    assert torch.equal(state["memory"], held["memory"])
    context.ids.fill_(0)
    context.mask.fill_(False)
    memory.write(context, first)
    assert torch.equal(first["memory"], kept["memory"])
    assert torch.equal(torch.get_rng_state(), random)
    for name, weight in memory.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_a_row_without_tokens_keeps_its_state() -> None:
    memory = scattering()
    state = memory.write(Tokens.from_rows([[1, 2], [3]])).state
    for empty in (
        Tokens.from_rows([[], []]),
        Tokens(torch.ones(2, 3, dtype=torch.int64), torch.zeros(2, 3).bool()),
    ):
        after = memory.write(empty, state).state
        assert torch.equal(after["memory"], state["memory"])
    half = memory.write(Tokens.from_rows([[], [5]]), state).state
    assert torch.equal(half["memory"][0], state["memory"][0])
    assert not torch.equal(half["memory"][1], state["memory"][1])


class Breaks(Scatter):
    """A writer that breaks one promise."""

    def __init__(self, promise: str) -> None:
        super().__init__(backbone("gpt2"))
        self.promise = promise

    def write(self, state: MemoryState, context: Tokens, /) -> WriteOutput:
        memory, spec = super().write(state, context).state["memory"], self.spec
        if self.promise == "slots":
            memory = torch.cat([memory, memory], 1)
            spec = StateSpec("prefix", {"memory": (2 * SLOTS, WIDTH)}, dtype=torch.float64)
        elif self.promise == "dtype":
            memory = memory.float()
            spec = StateSpec("prefix", {"memory": (SLOTS, WIDTH)})
        elif self.promise == "kind":
            spec = StateSpec("mine", {"memory": (SLOTS, WIDTH)}, dtype=torch.float64)
        elif self.promise == "rows":
            memory = memory[:1]
        elif self.promise == "tensor":
            return WriteOutput(MemoryState(spec, {"memory": memory.float()}))
        return WriteOutput(MemoryState(spec, {"memory": memory}))


@pytest.mark.parametrize("promise", ["slots", "dtype", "kind", "rows", "tensor"])
def test_a_writer_that_breaks_a_promise_is_caught(promise: str) -> None:
    """Shapes, dtype, kind, and one row per context, or a state would be read by the wrong user."""
    config = Config(described("gpt2"), PartConfig("breaks"), PartConfig("prefix"))
    memory = Memory(backbone("gpt2"), Breaks(promise), without_params(PrefixReader), config)
    with pytest.raises(ContractViolation):
        memory.write(Tokens.from_rows([[1, 2], [3]]))


def test_an_unbounded_writer_may_grow_but_not_change_its_kind() -> None:
    writer = Breaks("slots")
    writer.spec = StateSpec("prefix", {"memory": (SLOTS, WIDTH)}, (), torch.float64, bounded=False)
    config = Config(described("gpt2"), PartConfig("grows"), PartConfig("prefix"))
    memory = Memory(backbone("gpt2"), writer, without_params(PrefixReader), config)
    assert memory.write(Tokens.from_rows([[1]])).state["memory"].shape[1] == 2 * SLOTS
    writer.promise = "kind"
    with pytest.raises(ContractViolation, match="'grows' declared"):
        memory.write(Tokens.from_rows([[1]]))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_rows_that_diverge_are_named(number: float) -> None:
    memory = scattering()
    state = memory.writer.init(3)
    state["memory"][1, 0, 0] = number
    with pytest.raises(DivergenceError, match=r"'scatter' diverged: 'memory'.* \[1\]"):
        memory.write(Tokens.from_rows([[1], [2], [3]]), state)


def test_the_chunk_that_diverges_is_the_last() -> None:
    """A chunk that is not finite is caught at once, before the next one is written."""
    memory = scattering()
    with torch.no_grad():
        memory.writer.matrix[0, 0] = math.nan
    with pytest.raises(DivergenceError):
        memory.write(Tokens.from_rows([[1] * (2 * ROOM)]))
    assert len(memory.writer.seen) == 1


def test_pairs_must_fit() -> None:
    parts = PartConfig("scatter"), PartConfig("key-value")
    with pytest.raises(IncompatiblePair, match=r"'key-value'.*keyvalue.*'scatter'.*'prefix'"):
        Memory(
            backbone("gpt2"),
            Scatter(backbone("gpt2")),
            without_params(KeyValueReader),
            Config(described("gpt2"), *parts),
        )
    with pytest.raises(IncompatiblePair, match=r"'prefix'.*'full-context'"):
        Memory.from_config(
            {
                "backbone": MODELS["gpt2"],
                "writer": {"name": "full-context"},
                "reader": {"name": "prefix"},
            }
        )


def test_a_writer_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="'scatter' uses 64 positions"):
        scattering(reserved_positions=64).write("text")
    assert scattering(reserved_positions=63).write("text").state.batch_size == 1


def test_a_memory_that_only_reads_says_so() -> None:
    memory = Memory(backbone("gpt2"), None, without_params(PrefixReader), Config(described("gpt2")))
    with pytest.raises(InputError, match="only read"):
        memory.write("text")


def test_texts_are_closed_by_the_end_token() -> None:
    tokens = scattering().encode(["aé", "c"])
    assert tokens.ids[tokens.mask].tolist() == [97, 195, 169, 257, 99, 257]
    assert tokens.lengths.tolist() == [4, 2]
    assert scattering().encode("c").ids.tolist() == [[99, 257]]


@pytest.mark.parametrize("texts", [[], "", [" \n\t"], ["fine", ""], "\ud800", ["a", "b\udfff"]])
def test_texts_that_cannot_be_written(texts: Any) -> None:
    """Nothing to write, or not to be encoded."""
    with pytest.raises(InputError):
        scattering().write(texts)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_state_of_other_rows_is_refused(rows: int) -> None:
    """One state for two contexts would be shared among users."""
    memory = scattering()
    with pytest.raises((InputError, ContractViolation)):
        memory.write(Tokens.from_rows([[1], [2]]), memory.writer.init(rows))


@pytest.mark.parametrize("rows", [1, 3])
def test_queries_of_other_rows_are_refused(rows: int) -> None:
    """By both numbers, in read and in generate."""
    memory = scattering()
    state, query = memory.writer.init(rows), Tokens.from_rows([[1], [2]])
    for use in (memory.read, memory.generate):
        with pytest.raises(InputError, match=rf"{rows} rows.*2"):
            use(state, query)


def test_a_state_of_another_kind_is_refused() -> None:
    """In write, in read and in generate, by a sentence and not by a KeyError."""
    memory = scattering()
    other = MemoryState(StateSpec("mine", {"x": (2,)}), {"x": torch.zeros(1, 2)})
    query = Tokens.from_rows([[1]])
    for use in (
        lambda: memory.write(query, other),
        lambda: memory.read(other, query),
        lambda: memory.generate(other, query),
    ):
        with pytest.raises(MemwriteError):
            use()
