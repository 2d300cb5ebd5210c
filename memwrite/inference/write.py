"""Run a writer over contexts of any length, and hold it to what it declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from memwrite.build import Components
from memwrite.errors import ConfigError, ContractViolation, DivergenceError, InputError
from memwrite.inference import online
from memwrite.protocols import DeletingWriter, LayerReader, OnlineWriter, WriteOutput, Writer
from memwrite.state import MemoryState, PackedTokens
from memwrite.utils.progress import track


def write(memory: Components, packed: PackedTokens, state: MemoryState) -> WriteOutput:
    """Write packed contexts into `state`, in chunks where they are longer than the model's positions.

    A row without real tokens stays as it was.

    Raises:
        InputError: the writer cannot go on from such a state.
        ConfigError: the writer leaves the model no positions.
        ContractViolation: the writer broke its own spec.
        DivergenceError: a state is not finite.
    """
    return _in_chunks(memory, packed, state, partial(_write_chunk, memory))


def forget(memory: Components, packed: PackedTokens, state: MemoryState) -> WriteOutput:
    """Take packed contexts, each of them once written by itself, out of `state`, in the chunks in which `write` writes.

    A row without real tokens stays as it was.

    Raises:
        InputError: the writer cannot forget, or the state cannot have read the contexts.
        ConfigError, ContractViolation, DivergenceError: as in `write`.
    """
    writer: Writer | None = memory.writer
    if not isinstance(writer, DeletingWriter):
        raise InputError(
            f"writer '{memory.config.writer.name}' cannot take a text out of a memory: write the others anew, or use a "
            f"writer with the capability deletion"
        )
    return _in_chunks(memory, packed, state, writer.forget)


def _in_chunks(
    memory: Components,
    packed: PackedTokens,
    state: MemoryState,
    change: Callable[[MemoryState, PackedTokens], WriteOutput],
) -> WriteOutput:
    writer, name = memory.writer, memory.config.writer.name
    assert writer is not None
    if state.spec.kind != writer.spec.kind:
        raise InputError(
            f"writer '{name}' goes on from '{writer.spec.kind}' states, "
            f"but was given a '{state.spec.kind}' state"
        )
    room = memory.backbone.info.positions - writer.reserved_positions
    if room < 1:
        raise ConfigError(
            f"writer '{name}' uses {writer.reserved_positions} positions besides the "
            f"context, but the model has only {memory.backbone.info.positions}: use fewer slots"
        )
    if not bool(packed.mask.any()):
        return WriteOutput(state)
    losses: list[Mapping[str, Tensor]] = []
    traces: list[Mapping[str, Tensor]] = []
    lengths: list[Tensor] = []
    starts = range(0, max(packed.ids.shape[1], 1), room)
    for start in track(starts, "write", "chunk") if len(starts) > 1 else starts:
        chunk = packed.columns(start, start + room)
        written = change(state, chunk)
        _check_spec(name, writer, written.state, chunk.ids.shape[0])
        state = _keep_empty_rows(state, written.state, chunk)
        _check_finite(name, state)
        losses.append(written.losses)
        traces.append(written.trace)
        lengths.append(chunk.lengths)
    if len(lengths) == 1:
        return replace(written, state=state)
    return WriteOutput(state, _joined_losses(losses, lengths), _joined_traces(traces))


def _write_chunk(memory: Components, state: MemoryState, chunk: PackedTokens) -> WriteOutput:
    writer, reader = memory.writer, memory.reader
    assert writer is not None
    if isinstance(writer, OnlineWriter) and isinstance(reader, LayerReader):
        return online.run(memory.backbone, writer, reader, chunk, state).written
    return writer.write(state, chunk)


def _keep_empty_rows(before: MemoryState, after: MemoryState, chunk: PackedTokens) -> MemoryState:
    touched = chunk.mask.any(1)
    if not after.tensors or bool(touched.all()):
        return after
    if before.spec == after.spec:
        return after.where(touched.to(next(iter(after.tensors.values())).device), before)
    if not bool(touched.any()):
        return before
    return (
        after  # the state grew with the written rows, so that the writer alone can keep the others
    )


def _check_spec(name: str, writer: Writer, state: MemoryState, rows: int) -> None:
    if state.batch_size not in (None, rows):
        raise ContractViolation(f"writer '{name}' wrote {state.batch_size} rows of {rows} contexts")
    if not writer.spec.admits(state.spec):
        raise ContractViolation(f"writer '{name}' declared {writer.spec} but wrote {state.spec}")


def _check_finite(name: str, state: MemoryState) -> None:
    for part, tensor in state.tensors.items():
        finite = tensor.isfinite().reshape(tensor.shape[0], -1).all(1)
        if part == "bias":  # -inf hides a slot from a head
            finite = (~tensor.isnan() & (tensor != torch.inf)).reshape(tensor.shape[0], -1).all(1)
        if not finite.all():
            rows = (~finite).nonzero().flatten().tolist()
            raise DivergenceError(
                f"writer '{name}' diverged: '{part}' is not finite in row(s) "
                f"{rows}: use smaller steps, clipped gradients, or settings that bound the state",
                rows,
            )


def _joined_losses(
    losses: Sequence[Mapping[str, Tensor]], lengths: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Average the chunks' losses, weighted by their numbers of tokens."""
    total = torch.stack([*lengths]).sum(0).clamp(min=1)
    return {
        name: torch.stack(
            [part[name] * count / total for part, count in zip(losses, lengths, strict=True)]
        ).sum(0)
        for name in losses[0]
    }


def _joined_traces(traces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the steps of all chunks."""
    return {name: torch.cat([part[name] for part in traces]) for name in traces[0]}
