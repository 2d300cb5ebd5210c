"""Tokens, specs and states: what may be built, and what stays the same when it moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memwrite.errors import ContractViolation
from memwrite.state import MemoryState, StateSpec, Tokens

ROWS = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=4)


def scattered(rows: list[list[int]], holes: list[list[bool]]) -> Tokens:
    """The rows with padding strewn in: a hole before each token where `holes` says so."""
    ids, mask = [], []
    for row, gaps in zip(rows, holes, strict=True):
        line: list[tuple[int, bool]] = []
        for token, gap in zip(row, gaps, strict=False):
            line += [(77, False)] * gap + [(token, True)]
        ids.append([token for token, _ in line])
        mask.append([real for _, real in line])
    width = max(map(len, ids))
    return Tokens(
        torch.tensor([row + [77] * (width - len(row)) for row in ids], dtype=torch.int64),
        torch.tensor([row + [False] * (width - len(row)) for row in mask], dtype=torch.bool),
    )


@given(ROWS, st.data())
def test_packing_keeps_real_tokens_in_order_and_nothing_else(
    rows: list[list[int]], data: Any
) -> None:
    holes = [data.draw(st.lists(st.booleans(), min_size=len(r), max_size=len(r))) for r in rows]
    tokens = scattered(rows, holes)
    packed, order = tokens.pack()
    assert packed.ids.shape[1] == max(map(len, rows))
    assert [row[mask].tolist() for row, mask in zip(packed.ids, packed.mask, strict=True)] == rows
    assert torch.equal(tokens.ids.gather(1, order), packed.ids)
    assert not (~packed.mask[:, :-1] & packed.mask[:, 1:]).any()
    assert torch.equal(packed.ids, packed.packed().ids)


def test_queries_flatten_in_rows() -> None:
    ids = torch.arange(24).reshape(2, 3, 4)
    flat = Tokens(ids, ids > 5).flat()
    assert flat.ids.shape == (6, 4)
    assert flat.lengths.tolist() == [0, 2, 4, 4, 4, 4]
    assert Tokens.from_rows([[], []]).flat().ids.shape == (2, 0)


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)),
        (torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)),
    ],
)
def test_tokens_of_other_shapes_or_dtypes_are_refused(
    ids: torch.Tensor, mask: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="must be"):
        Tokens(ids, mask)


def test_sizes_are_counted_from_shapes_and_from_tensors_alike() -> None:
    shapes = {"keys": (2, 1, 5, 4), "values": (2, 1, 5, 4), "mask": (5,), "next_position": ()}
    spec = StateSpec("keyvalue", shapes, (0, 1), torch.bfloat16)
    tensors = {n: torch.zeros(3, *s, dtype=spec.dtype_of(n)) for n, s in shapes.items()}
    state = MemoryState(spec, tensors)
    assert spec.nbytes == 2 * 40 * 2 + 5 + 8
    assert (state.nbytes, state.floats) == (3 * spec.nbytes, 3 * spec.floats)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("prefix", {}),
        ("prefix", {"memory": (4,)}),
        ("prefix", {"memory": (4, 8), "text": (9,)}),
        ("matrix", {"S": (1, 2, 3)}),
        ("keyvalue", {"keys": (1, 1, 2, 2), "values": (1, 1, 2, 2)}),
        ("lowrank", {"A.x": (1, 2, 3)}),
    ],
)
def test_a_shared_kind_has_its_tensors_and_no_others(kind: str, shapes: Any) -> None:
    with pytest.raises(ContractViolation, match=kind):
        StateSpec(kind, shapes)


def test_kinds_of_ones_own_are_free() -> None:
    assert StateSpec("my-kind", {"x": (2,), "y": (3, 3)}).floats == 11


PREFIX = StateSpec("prefix", {"memory": (2, 3)})


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"memory": torch.zeros(1, 3, 2)},
        {"memory": torch.zeros(1, 2, 3, dtype=torch.float64)},
        {"memory": torch.zeros(1, 2, 3), "latent": torch.zeros(1, 2, 3)},
    ],
)
def test_a_state_has_what_its_spec_says(tensors: Any) -> None:
    with pytest.raises(ContractViolation):
        MemoryState(PREFIX, tensors)


def test_states_stack_select_clone_and_detach() -> None:
    a, b = (
        MemoryState(PREFIX, {"memory": torch.randn(n, 2, 3, requires_grad=True)}) for n in (1, 2)
    )
    both = MemoryState.stack([a, b])
    assert both.batch_size == 3
    assert torch.equal(both.rows(slice(1, 3))["memory"], b["memory"])
    assert torch.equal(both.rows(torch.tensor([2]))["memory"], b["memory"][1:])
    assert not both.detach()["memory"].requires_grad
    copy = b.detach().clone()
    copy["memory"].zero_()
    assert not torch.equal(copy["memory"], b["memory"])
    with pytest.raises(ContractViolation, match="one spec"):
        MemoryState.stack([a, MemoryState(StateSpec("mine", {}), {})])
