"""Tokens, specs and states: laws of the values that cross from WRITE to READ."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memwrite import MemoryState, StateSpec, Tokens
from memwrite.errors import ContractViolation
from memwrite.state import KINDS, PackedTokens, StateKind, TensorSpec

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
SHAPES = st.dictionaries(
    st.sampled_from("abc"), st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=3
)


@st.composite
def batches(draw: Any) -> Tokens:
    """Any ids, any mask, two or three axes, with segments or without."""
    shape = draw(st.lists(st.integers(0, 4), min_size=2, max_size=3))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    ids = torch.randint(0, 99, shape, generator=seed)
    mask = torch.randint(0, 2, shape, generator=seed).bool()
    segments = torch.randint(-1, 5, shape, generator=seed) if draw(st.booleans()) else None
    return Tokens(ids, mask, segments)


@st.composite
def held(draw: Any, rows: int | None = None) -> MemoryState:
    shapes = draw(SHAPES)
    count = draw(st.integers(0, 3)) if rows is None else rows
    spec = StateSpec("own", shapes, (), draw(DTYPES))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    tensors = {
        name: torch.randn(count, *shape, generator=seed).to(spec.dtype)
        for name, shape in shapes.items()
    }
    return MemoryState(spec, tensors)


def same(one: Tokens, other: Tokens) -> bool:
    return (
        torch.equal(one.ids, other.ids)
        and torch.equal(one.mask, other.mask)
        and (one.segments is None) == (other.segments is None)
        and (one.segments is None or torch.equal(one.segments, other.segments))  # type: ignore[arg-type]
    )


@given(batches())
def test_packing_moves_real_tokens_to_the_front_and_keeps_their_order(tokens: Tokens) -> None:
    """Their segments come along; packing twice is packing once; `pack` knows where each one stood."""
    packed, order = tokens.pack()
    assert same(packed, tokens.packed())
    assert same(packed.packed(), packed)
    assert torch.equal(packed.lengths, tokens.lengths)
    assert packed.ids.shape[-1] == (int(tokens.lengths.max()) if tokens.lengths.numel() else 0)
    assert torch.equal(packed.ids, tokens.ids.gather(-1, order))
    assert torch.equal(packed.mask, tokens.mask.gather(-1, order))
    flat, before = packed.flat(), tokens.flat()
    for row in range(len(flat.ids)):
        length = int(flat.lengths[row])
        assert flat.mask[row].tolist() == [c < length for c in range(flat.ids.shape[1])]
        assert torch.equal(flat.ids[row, :length], before.ids[row][before.mask[row]])
        if flat.segments is not None and before.segments is not None:
            assert torch.equal(flat.segments[row, :length], before.segments[row][before.mask[row]])


@given(batches(), st.integers(0, 4))
def test_rows_and_columns_take_tokens_apart(tokens: Tokens, cut: int) -> None:
    """Flat queries are the rows in turn; what is cut can be put together again."""
    width = tokens.ids.shape[-1]
    left, right = tokens.columns(0, cut), tokens.columns(cut, width)
    assert torch.equal(torch.cat([left.ids, right.ids], -1), tokens.ids)
    assert torch.equal(left.lengths + right.lengths, tokens.lengths)
    flat = tokens.flat()
    assert flat.ids.shape == (prod(tokens.ids.shape[:-1]), width)
    assert torch.equal(flat.ids.reshape(tokens.ids.shape), tokens.ids)
    upper, lower = tokens.rows(slice(0, cut)), tokens.rows(slice(cut, None))
    assert torch.equal(torch.cat([upper.mask, lower.mask]), tokens.mask)
    chosen = torch.arange(len(tokens.ids)).flip(0)
    assert torch.equal(tokens.rows(chosen).ids, tokens.ids.flip(0))


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=4))
def test_rows_of_ids_are_padded_right(rows: list[list[int]]) -> None:
    tokens = Tokens.from_rows(rows)
    assert tokens.ids.shape == (len(rows), max(map(len, rows), default=0))
    assert tokens.lengths.tolist() == [len(row) for row in rows]
    assert [row[:n].tolist() for row, n in zip(tokens.ids, map(len, rows), strict=True)] == rows
    assert same(tokens.packed(), tokens)


@given(batches())
def test_a_clone_shares_nothing(tokens: Tokens) -> None:
    copy = tokens.clone()
    assert same(copy, tokens)
    for one, other in ((copy.ids, tokens.ids), (copy.mask, tokens.mask)):
        assert one.numel() == 0 or one.data_ptr() != other.data_ptr()
    assert tokens.to("cpu").ids is tokens.ids


IDS = torch.zeros(2, 3, dtype=torch.int64)
MASK = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ((IDS.int(), MASK), "ids"),
        ((IDS.double(), MASK), "ids"),
        ((IDS[0], MASK[0]), "ids"),
        ((IDS[None, None], MASK[None, None]), "ids"),
        ((IDS, MASK.int()), "mask"),
        ((IDS, MASK[:, :2]), "mask"),
        ((IDS, MASK[:1]), "mask"),
        ((IDS, MASK, IDS.int()), "segments"),
        ((IDS, MASK, IDS[:, :2]), "segments"),
    ],
)
def test_tokens_that_disagree_are_refused(fields: tuple[Any, ...], name: str) -> None:
    with pytest.raises(ValueError, match=rf"Tokens\.{name} must be"):
        Tokens(*fields)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_kinds_have_the_tensors_that_the_table_says(kind: str) -> None:
    """All required ones, any optional ones, each with its axes, and nothing else."""
    required, axes = KINDS[kind].required, KINDS[kind].axes
    whole = {name: (2,) * len(axes[name]) for name in axes}
    assert StateSpec(kind, whole).kind == kind
    assert StateSpec(kind, {name: whole[name] for name in required}).kind == kind
    wrong: list[dict[str, tuple[int, ...]]] = [{**whole, "extra": (2,)}]
    wrong += [{n: s for n, s in whole.items() if n != name} for name in required]
    wrong += [{**whole, name: (*shape, 2)} for name, shape in whole.items()]
    for shapes in wrong:
        with pytest.raises(ContractViolation, match=f"'{kind}'"):
            StateSpec(kind, shapes)


@given(held())
def test_sizes_are_measured(state: MemoryState) -> None:
    """From the tensors, all rows together; the spec's are those of one row."""
    rows = state.batch_size or 0
    assert state.floats == sum(tensor.numel() for tensor in state.tensors.values())
    assert state.floats == rows * state.spec.floats
    assert state.nbytes == rows * state.spec.nbytes
    assert state.nbytes == state.floats * state.spec.dtype.itemsize


def test_sizes_of_exact_tensors() -> None:
    """A key-value state's mask is bytes and its position eight, whatever the dtype."""
    shapes = {"keys": (2, 1, 5, 4), "values": (2, 1, 5, 4), "mask": (5,), "next_position": ()}
    for dtype, size in ((torch.bfloat16, 2), (torch.float32, 4), (torch.float64, 8)):
        spec = StateSpec("keyvalue", shapes, (0, 1), dtype)
        assert spec.nbytes == 80 * size + 5 + 8
        assert spec.floats == 80 + 5 + 1
    assert StateSpec("own", shapes, (), torch.float32).nbytes == 86 * 4


@given(held(), st.data())
def test_stacking_is_undone_by_rows(state: MemoryState, data: Any) -> None:
    """Any cut, any order, copies included."""
    rows = state.batch_size or 0
    cut = data.draw(st.integers(0, rows))
    parts = [state.rows(slice(0, cut)), state.rows(slice(cut, rows))]
    whole = MemoryState.stack(parts)
    assert whole.spec == state.spec
    for name, tensor in state.tensors.items():
        assert torch.equal(whole[name], tensor)
    index = torch.tensor(
        data.draw(st.lists(st.integers(0, rows - 1), max_size=4)) if rows else [],
        dtype=torch.int64,
    )
    chosen = state.rows(index)
    for name, tensor in state.tensors.items():
        assert torch.equal(chosen[name], tensor[index])
    assert chosen.batch_size == (len(index) if state.tensors else None)


def test_only_states_of_one_spec_are_stacked() -> None:
    one = MemoryState(StateSpec("own", {"a": (2,)}), {"a": torch.zeros(1, 2)})
    for spec, tensor in (
        (StateSpec("own", {"a": (3,)}), torch.zeros(1, 3)),
        (StateSpec("other", {"a": (2,)}), torch.zeros(1, 2)),
        (StateSpec("own", {"a": (2,)}, (0,)), torch.zeros(1, 2)),
        (StateSpec("own", {"a": (2,)}, (), torch.float64), torch.zeros(1, 2).double()),
    ):
        with pytest.raises(ContractViolation, match="one spec"):
            MemoryState.stack([one, MemoryState(spec, {"a": tensor})])


SPEC = StateSpec("own", {"a": (2, 3), "b": ()})
A, B = torch.zeros(4, 2, 3), torch.zeros(4)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"a": A},
        {"a": A, "b": B, "c": B},
        {"a": A[:, :1], "b": B},
        {"a": A[0], "b": B},
        {"a": A[..., None], "b": B},
        {"a": A.double(), "b": B},
        {"a": A, "b": B.long()},
        {"a": A, "b": B[:3]},
        {"a": A, "b": B[:, None]},
        {"a": A, "b": B[0]},
    ],
)
def test_tensors_other_than_the_specs_are_refused(tensors: dict[str, Any]) -> None:
    """Missing, unknown, of another shape or dtype, of other rows, or without a batch axis."""
    with pytest.raises(ContractViolation):
        MemoryState(SPEC, tensors)


def test_a_state_moves_without_changing() -> None:
    values = torch.randn(2, 2, 3, requires_grad=True)
    state = MemoryState(SPEC, {"a": values * 2, "b": torch.ones(2)})
    assert state["a"].requires_grad
    assert not state.detach()["a"].requires_grad
    assert torch.equal(state.detach()["a"], values * 2)
    copy = state.detach().clone()
    copy["a"].zero_()
    assert torch.equal(state["a"], values * 2)
    state.clone()["a"].sum().backward()
    assert torch.equal(values.grad, torch.full((2, 2, 3), 2.0))
    assert state.to("cpu")["b"] is state["b"]
    assert state.to("meta")["a"].device.type == "meta"
    assert MemoryState(StateSpec("empty", {}), {}).batch_size is None


def test_axes_of_one_name_have_one_size() -> None:
    kind = StateKind("axes", {"a": "L M", "b": "L M D"}, {"c": "D"}, {"c": torch.int64})
    assert kind.sizes({"a": (2, 3), "b": (2, 3, 5)}) == {"L": 2, "M": 3, "D": 5}
    with pytest.raises(ContractViolation, match="the axis M has 3 elements, but 4 in 'b'"):
        kind.sizes({"a": (2, 3), "b": (2, 4, 5)})
    with pytest.raises(ContractViolation, match="no tensor of it has the axes"):
        StateKind("deaf", {"a": "L H Dk"}, recall=lambda tensors, queries: queries)


def test_tensors_have_a_dtype_and_a_layer_axis_of_their_own() -> None:
    """A declared kind says both for a tuple; a `TensorSpec` says them itself; any kind may have latent tensors."""
    shapes = {
        "keys": (1, 1, 3, 4), "values": (1, 1, 3, 4), "mask": (3,), "next_position": (),
        "latent.counts": TensorSpec((1, 2), torch.int64), "latent.total": TensorSpec((2,), per_layer=False),
    }  # fmt: skip
    spec = StateSpec("keyvalue", shapes, (5,), torch.float64)
    assert spec == StateSpec("keyvalue", dict(spec.tensors), (5,), torch.float64)
    assert hash(spec) == hash(StateSpec("keyvalue", dict(spec.tensors), (5,), torch.float64))
    state = spec.zeros(2)
    dtypes = {name: tensor.dtype for name, tensor in state.tensors.items()}
    assert dtypes["mask"] == torch.bool
    assert dtypes["latent.counts"] == dtypes["next_position"] == torch.int64
    assert dtypes["keys"] == dtypes["latent.total"] == torch.float64
    assert {name: t.shape for name, t in state.layer(5).items()} == {
        "keys": (2, 1, 3, 4), "values": (2, 1, 3, 4), "latent.counts": (2, 2)
    }  # fmt: skip
    with pytest.raises(ContractViolation, match="not for layer 0"):
        state.layer(0)
    with pytest.raises(ContractViolation, match="should begin with an axis of 1"):
        StateSpec("own", {"a": TensorSpec((2, 4))}, (5,))
    assert spec.nbytes == sum(t.numel() * t.element_size() for t in spec.zeros(1).tensors.values())


@given(held(3), held(3), st.lists(st.booleans(), min_size=3, max_size=3))
def test_states_are_mixed_row_by_row(one: MemoryState, two: MemoryState, rows: list[bool]) -> None:
    if one.spec != two.spec:
        with pytest.raises(ContractViolation, match="of one spec"):
            one.where(torch.tensor(rows), two)
        two = one.map(lambda tensor: tensor + 1)
    mixed = one.where(torch.tensor(rows), two)
    for name in one.tensors:
        for row, first in enumerate(rows):
            assert torch.equal(mixed[name][row], (one if first else two)[name][row])


@given(batches())
def test_packed_tokens_have_no_padding_before_a_real_token(tokens: Tokens) -> None:
    gap = bool((tokens.mask[..., 1:] & ~tokens.mask[..., :-1]).any())
    if gap:
        with pytest.raises(ValueError, match=r"call Tokens\.packed"):
            PackedTokens(tokens.ids, tokens.mask, tokens.segments)
    packed = tokens.packed()
    assert isinstance(packed, PackedTokens)
    assert isinstance(packed.flat().columns(0, 1).clone(), PackedTokens)


def test_a_state_prints_shortly() -> None:
    state = StateSpec("prefix", {"memory": (3, 4)}).zeros(2)
    assert repr(state) == "MemoryState(prefix: memory (2, 3, 4); 96 bytes)"
