"""What is left behind in a process is found."""

from __future__ import annotations

import types

import pytest
import torch
from memwrite_specs.forked import ForkedProcess
from memwrite_specs.heap_diff import HeapSnapshot
from memwrite_specs.law import LawBroken
from torch import Tensor

_NOTES = types.SimpleNamespace(text=b"")


def test_what_comes_to_the_place_of_what_it_replaces_is_found() -> None:
    with ForkedProcess(_replace) as process, pytest.raises(LawBroken, match="holds something else"):
        process.call()


def _replace(_: bytes) -> dict[str, Tensor]:
    _NOTES.text = bytes(range(100))
    heap = HeapSnapshot()
    _NOTES.text = b""
    _NOTES.text = bytes(range(1, 101))  # Python gives it the memory that was given back last
    if found := heap.leaks():
        raise LawBroken("; ".join(found))
    return {}


def test_a_tensor_of_any_strides_can_be_compared() -> None:
    held = [torch.ones(()).expand(1), torch.ones(1).expand(3), torch.ones(2, 3).T, torch.ones(0)]
    with ForkedProcess(lambda _: _double(held)) as process, pytest.raises(LawBroken) as caught:
        process.call()
    changed = ("(1,)", "(3,)", "(3, 2)")
    assert all(f"a torch.Tensor of shape {x} holds" in str(caught.value) for x in changed)


def _double(held: list[Tensor]) -> dict[str, Tensor]:
    heap = HeapSnapshot()
    for tensor in held:
        (tensor[:1] if tensor.stride() == (0,) else tensor).mul_(2)
    if found := heap.leaks():
        raise LawBroken("; ".join(found))
    return {}
