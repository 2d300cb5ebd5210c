"""Run a writer over contexts of any length, and hold it to what it declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memwrite import online
from memwrite.errors import ConfigError, ContractViolation, DivergenceError, InputError
from memwrite.protocols import LayerReader, OnlineWriter, Written
from memwrite.state import MemoryState, Tokens

if TYPE_CHECKING:
    from memwrite.memory import Memory


def write(memory: Memory, packed: Tokens, state: MemoryState) -> Written:
    """Write packed contexts into `state`, in chunks where they are longer than the model's positions.

    Raises:
        InputError: the writer cannot go on from such a state.
        ConfigError: the writer leaves the model no positions.
        ContractViolation: the writer broke its own spec.
        DivergenceError: a state is not finite.
    """
    writer, name = memory.writer, memory.config.writer.name
    if state.spec.kind != writer.spec.kind:
        raise InputError(
            f"writer '{name}' goes on from '{writer.spec.kind}' states, "
            f"but was given a '{state.spec.kind}' state"
        )
    room = memory.backbone.info.positions - writer.reserve
    if room < 1:
        raise ConfigError(
            f"writer '{name}' uses {writer.reserve} positions besides the "
            f"context, but the model has only {memory.backbone.info.positions}: use fewer slots"
        )
    parts = []
    for start in range(0, max(packed.ids.shape[1], 1), room):
        chunk = packed.columns(start, start + room)
        written = _written(memory, state, chunk)
        _check(memory, written, chunk.ids.shape[0])
        state = written.state
        parts.append((written, chunk.lengths))
    return _joined(parts)


def _written(memory: Memory, state: MemoryState, chunk: Tokens) -> Written:
    writer, reader = memory.writer, memory.reader
    if isinstance(writer, OnlineWriter) and isinstance(reader, LayerReader):
        return online.run(memory.backbone, writer, reader, chunk, state).written
    written: Written = writer.write(state, chunk)
    return written


def _check(memory: Memory, written: Written, rows: int) -> None:
    name, spec, state = memory.config.writer.name, memory.writer.spec, written.state
    if state.batch_size not in (None, rows):
        raise ContractViolation(f"writer '{name}' wrote {state.batch_size} rows of {rows} contexts")
    if not spec.admits(state.spec):
        raise ContractViolation(f"writer '{name}' declared {spec} but wrote {state.spec}")
    for part, tensor in state.tensors.items():
        finite = tensor.isfinite().reshape(tensor.shape[0], -1).all(1)
        if not finite.all():
            wrong = (~finite).nonzero().flatten().tolist()
            raise DivergenceError(
                f"writer '{name}' diverged: '{part}' is not finite in row(s) "
                f"{wrong}: use smaller steps, clipped gradients, or settings that bound the state",
                wrong,
            )


def _joined(parts: Sequence[tuple[Written, Tensor]]) -> Written:
    """The writes of one context's chunks as one: the last state, losses weighted by tokens, traces in a row."""
    if len(parts) == 1:
        return parts[0][0]
    total = torch.stack([lengths for _, lengths in parts]).sum(0).clamp(min=1)
    names, traces = parts[0][0].losses, parts[0][0].trace
    losses = {
        n: torch.stack([w.losses[n] * lengths / total for w, lengths in parts]).sum(0)
        for n in names
    }
    trace = {n: torch.cat([w.trace[n] for w, _ in parts]) for n in traces}
    return Written(parts[-1][0].state, losses, trace)
