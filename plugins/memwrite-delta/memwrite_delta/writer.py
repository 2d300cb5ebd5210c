"""The writer of matrix states: one scan, with a cell for each rule."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from memwrite.inference import online
from memwrite.modules.layers import chosen_layers
from memwrite.protocols import Backbone, Granularity, LayerInput, ScanOutput, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec, matrix_recall
from memwrite_delta.cells import Cell, Writes
from memwrite_delta.config import DeltaConfig, MatrixConfig
from memwrite_delta.scan import scan
from memwrite_delta.segments import segment_writes


class MatrixWriter(nn.Module):
    """Writes what the attention layers of a backbone see into matrices, one write after another.

    An `OnlineWriter`. `write` alone runs the backbone with nobody reading; in a Memory with a layer reader the
    core runs it with the reads of `scan` in force, as δ-mem does (arXiv 2605.12357, section 3).

    Args:
        config: sizes, layers, and what is one write.
        backbone: whose layers are written from.
        cell: makes a layer's keys, values and gates; of (width of the hidden states, dtype).

    Raises:
        ConfigError: the backbone has no such layer.
    """

    reserved_positions = 0

    def __init__(
        self,
        config: MatrixConfig,
        backbone: Backbone,
        cell: Callable[[int, torch.dtype], Cell],
    ) -> None:
        super().__init__()
        info = backbone.info
        layers = chosen_layers(config.layers, info)
        dtype = info.state_dtype
        shape = (len(layers), config.heads, config.values, config.rank)
        self.spec = StateSpec("matrix", {"S": shape}, layers, dtype)
        self._config = config
        self._backbone = backbone
        self.cells = nn.ModuleDict({str(layer): cell(info.hidden_size, dtype) for layer in layers})

    @property
    def granularity(self) -> Granularity:
        """Return the configured granularity."""
        return cast(Granularity, self._config.granularity)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return a state of zeros."""
        return self.spec.zeros(batch_size, next(self.parameters()).device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Read `context` without any reads of the state, and write it."""
        return online.run(self._backbone, self, None, context, state).written

    def scan(self, step: LayerInput, state: Mapping[str, Tensor], /, *, write: bool) -> ScanOutput:
        """See `OnlineWriter.scan`; the state is S (B, H, Dv, Dk)."""
        mask, segments, queries = step.mask, step.segments, step.queries
        if not write:
            return ScanOutput(_at_rest(state, queries), state)
        hidden, ends, earlier = step.hidden.to(self.spec.dtype), mask, True
        if segments is not None and self.granularity != "token":
            real = torch.ones_like(segments, dtype=torch.bool) if mask is None else mask
            hidden, ends = segment_writes(hidden, segments, real)
            earlier = self._config.reads == "earlier"
        writes = self.cells[str(step.layer)](hidden)
        if ends is not None:
            writes = _only_at(ends, writes)
        online_reads, after = self._scanned(writes, queries if earlier else None, state["S"])
        reads = online_reads if earlier and queries is not None else _at_rest(state, queries)
        trace = partial(_trace, writes.log_keep, ends, after)
        return ScanOutput(reads, {"S": after}, self._losses(writes.write, ends), trace)

    def _scanned(
        self, writes: Writes, queries: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scan with each write repeated as configured; a token reads before its own first write."""

        def repeated(part: Tensor) -> Tensor:
            return part if times == 1 else part.repeat_interleave(times, 1)

        times = self._config.writes
        reads, after = scan(
            None if queries is None else repeated(queries),
            repeated(writes.keys),
            repeated(writes.values),
            repeated(writes.log_keep),
            repeated(writes.erase),
            repeated(writes.write),
            state,
        )
        return reads[:, ::times], after

    def _losses(self, strength: Tensor, ends: Tensor | None) -> dict[str, Tensor]:
        config = self._config
        if not isinstance(config, DeltaConfig) or not config.gate_weight:
            return {}
        excess = _mean(strength, ends) - config.gate_target
        if ends is not None:
            excess = torch.where(ends.any(1), excess, 0)
        return {"gates": config.gate_weight * excess**2}


def _only_at(ends: Tensor, writes: Writes) -> Writes:
    """Keep only the writes at `ends` (B, T): where a token is real, or a segment ends."""
    idle = ~ends[..., None, None]
    return replace(
        writes,
        log_keep=writes.log_keep.masked_fill(idle, 0),
        erase=writes.erase.masked_fill(idle, 0),
        write=writes.write.masked_fill(idle, 0),
    )


def _at_rest(state: Mapping[str, Tensor], queries: Tensor | None) -> Tensor | None:
    return None if queries is None else matrix_recall(state, queries)


def _mean(gates: Tensor, ends: Tensor | None) -> Tensor:
    """Return the mean over all writes (B,); 0 where there were none."""
    if ends is None:
        return gates.mean((1, 2, 3))
    each = gates.shape[2] * gates.shape[3]
    return gates.sum((1, 2, 3)) / (ends.sum(1) * each).clamp(min=1)


def _trace(log_keep: Tensor, ends: Tensor | None, state: Tensor) -> dict[str, Tensor]:
    """Return the state's norm, and the writes after which half of it is left, by the mean of log λ."""
    rate = _mean(log_keep.detach(), ends).abs()
    return {"norm": state.detach().flatten(1).norm(dim=1), "half_life": math.log(2) / rate}


def warn_unbounded(name: str, remedy: str) -> None:
    """Warn that some context can make the state of writer `name`, so configured, grow without bound."""
    warnings.warn(
        f"writer '{name}': these settings do not bound the state, so that some contexts make it grow without "
        f"end; {remedy}",
        stacklevel=2,
    )
