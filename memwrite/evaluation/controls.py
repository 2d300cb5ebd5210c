"""What every evaluation shares: a memory read beside its controls, the batches of contexts, and the table of scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch

from memwrite.config import PartConfig
from memwrite.state import MemoryState, Tokens
from memwrite.tasks.base import EvaluatedMemory

#: What is read, in the order of the table: the name of a reading, and what the table calls it.
TITLES = {
    "memory": "memory",
    "unwritten": "unwritten",
    "zero_state": "zero state",
    "shuffled_state": "another's state",
    "full_context": "context visible",
}

M = TypeVar("M", bound=EvaluatedMemory)


@contextmanager
def evaluation_mode(memory: EvaluatedMemory) -> Iterator[None]:
    """Put `memory` into evaluation mode, without gradients, and restore its mode afterwards."""
    training = memory.training
    memory.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        memory.train(training)


def context_visible(memory: M, needed: int) -> M | None:
    """Return a memory that keeps the whole context, around the same backbone; None if that has fewer positions.

    Args:
        memory: whose backbone is used.
        needed: positions of the longest context and its query together.
    """
    if needed > memory.backbone.info.positions:
        return None
    return _sibling(memory, "full-context", "key-value")


def without_memory(memory: M) -> M:
    """Return the same backbone without a memory."""
    return _sibling(memory, "no-memory", "no-memory")


def _sibling(memory: M, writer: str, reader: str) -> M:
    config = replace(memory.config, writer=PartConfig(writer), reader=PartConfig(reader))
    return type(memory).from_config(config, backbone=memory.backbone)


def readings(
    memory: M,
    state: MemoryState,
    visible: M | None,
    context: Tokens,
    others: Sequence[int] | None,
) -> Iterator[tuple[str, M, MemoryState]]:
    """Yield each reading of `TITLES` that there is: its name, the memory that reads, and the state to read from.

    Args:
        memory: the memory to evaluate.
        state: what it wrote of the contexts.
        visible: see `context_visible`; None leaves the full context out.
        context: the contexts.
        others: for each context, the row of another one, whose state is the control; None leaves it out.
    """
    yield "memory", memory, state
    yield "unwritten", memory, unwritten(memory, context.ids.shape[0])
    yield "zero_state", memory, state.map(torch.zeros_like)
    if others is not None:
        yield "shuffled_state", memory, state.rows(torch.tensor(others))
    if visible is not None:
        yield "full_context", visible, visible.write(context).state


def unwritten(memory: EvaluatedMemory, rows: int) -> MemoryState:
    """Return the states of so many memories that have read nothing; where they are learned they are not zeros."""
    return memory.write(Tokens.from_rows([[]] * rows)).state


def parts(total: int, size: int) -> Iterator[range]:
    """Cut the indices of `total` examples into ranges of nearly one length, about `size` and at least 2.

    A single example stays one range.
    """
    count = max(1, total // max(2, size))
    for part in range(count):
        yield range(part * total // count, (part + 1) * total // count)


def table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Lay out named rows of cells below the names of their columns."""
    width = max(16, *(len(name) + 1 for name in rows))
    widths = [max(17, len(column) + 2) for column in columns]
    return [
        (name.ljust(width) + "".join(map(str.rjust, cells, widths))).rstrip()
        for name, cells in {"": columns, **rows}.items()
    ]
