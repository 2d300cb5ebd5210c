"""What is left behind in a process is found."""

from __future__ import annotations

import types

import pytest
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
