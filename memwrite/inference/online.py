"""Run a backbone while an online writer writes and a layer reader reads at its attention layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import ConfigError, ContractViolation
from memwrite.inference.generate import continue_row, evaluating
from memwrite.protocols import (
    Backbone,
    BackboneOutput,
    KeyValues,
    LayerInput,
    LayerReader,
    OnlineWriter,
    ProjectionDeltas,
    ScanOutput,
    WriteOutput,
)
from memwrite.state import MemoryState, PackedTokens


class OnlineAdapter:
    """A writer, and perhaps a reader, at one layer during one run; a `LayerAdapter`.

    Gradient checkpointing calls it again with the same hidden states, generation with the next ones.

    Args:
        writer: the writer whose scan runs at the layer.
        reader: the reader of the scan's reads; None to write only.
        layer: number of the backbone's layer.
        state: this layer's tensors before the run, (B, ...).
        tokens: the tokens of the run, for their mask and segments; None if all are real and in no segment.
        write: False leaves the state as it is.
        continues: whether each call goes on from the state that the last one left.

    Attributes:
        output: the output of the last call; None before the first.
    """

    def __init__(
        self,
        writer: OnlineWriter,
        reader: LayerReader | None,
        layer: int,
        state: Mapping[str, Tensor],
        *,
        tokens: PackedTokens | None = None,
        write: bool = True,
        continues: bool = False,
    ) -> None:
        self._writer, self._reader, self._layer, self._state = writer, reader, layer, state
        self._write, self._continues = write, continues
        self._mask = None if tokens is None or bool(tokens.mask.all()) else tokens.mask
        self._segments = None if tokens is None else tokens.segments
        self.output: ScanOutput | None = None

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        reader = self._reader
        queries = None if reader is None else reader.queries(self._layer, hidden)
        step = LayerInput(self._layer, hidden, self._mask, self._segments, queries)
        self.output = self._writer.scan(step, self._state, write=self._write)
        if self._continues:
            self._state = self.output.state
        if reader is None or self.output.reads is None:
            return {}
        return reader.correct(self._layer, self.output.reads)

    def rows(self, index: Tensor) -> Self:
        """Return the adapter of these rows; only for calls without mask and segments."""
        state = {name: tensor[index.to(tensor.device)] for name, tensor in self._state.items()}
        return type(self)(
            self._writer, self._reader, self._layer, state,
            write=self._write, continues=self._continues,
        )  # fmt: skip


@dataclass(frozen=True)
class OnlineOutput:
    """The result of a run: what the backbone computed, and what was written."""

    run: BackboneOutput
    written: WriteOutput


def run(
    backbone: Backbone,
    writer: OnlineWriter,
    reader: LayerReader | None,
    tokens: PackedTokens,
    state: MemoryState,
    *,
    write: bool = True,
    past: KeyValues | None = None,
    use_cache: bool = False,
) -> OnlineOutput:
    """Read `tokens` with a state that is read and written on the way.

    Args:
        backbone: the language model.
        writer: its scan runs at the layers of its spec.
        reader: None for a write that nobody reads.
        tokens: (B, T).
        state: B memories.
        write: False leaves the state as it is.
        past: keys and values of what came before in the same text.
        use_cache: whether to return keys and values.

    Raises:
        ContractViolation: the tokens are not packed, so that padding could be written.
        ConfigError: the past of rows of different lengths is wanted, and recurrent layers would keep padding in it.
    """
    if not isinstance(tokens, PackedTokens):
        raise ContractViolation("an online run takes packed tokens: call Tokens.packed()")
    if use_cache and backbone.recurrent and not bool(tokens.mask.all()):
        raise ConfigError(
            "texts of different lengths cannot go on together on a model with recurrent layers, which would keep their "
            "padding: give one text at a time"
        )
    embeddings = backbone.embed(tokens.ids)
    if not tokens.ids.shape[1]:
        return OnlineOutput(BackboneOutput(embeddings, past), WriteOutput(state))
    adapters = {
        layer: OnlineAdapter(writer, reader, layer, state.layer(layer), tokens=tokens, write=write)
        for layer in state.spec.layers
    }
    output = backbone.forward(embeddings, past=past, corrections=adapters, use_cache=use_cache)
    scans = [a.output for a in adapters.values() if a.output is not None]
    key_values = output.key_values
    if key_values is not None:
        # The backbone takes every slot for a real one.
        mask = tokens.mask if past is None else torch.cat([past.mask, tokens.mask], 1)
        start = 0 if past is None else past.next_position
        key_values = replace(key_values, mask=mask, next_position=start + tokens.lengths)
    return OnlineOutput(BackboneOutput(output.hidden, key_values), _joined(scans, state))


def continue_text(
    backbone: TransformersBackbone,
    writer: OnlineWriter,
    reader: LayerReader,
    ids: Tensor,
    state: MemoryState,
    options: Mapping[str, Any],
) -> tuple[Tensor, OnlineOutput]:
    """Generate behind `ids`, every token written as soon as it is read, then write what was chosen.

    Args:
        backbone: the language model.
        writer: of granularity "token".
        reader: reads while the text is generated.
        ids: (1, T), T at least 1.
        state: one memory.
        options: options of transformers' `generate`.

    Returns:
        New ids (1, T'), and the run over `ids` and them. Beams and samples are drawn with states of their own;
        what is written in the end is the text that was returned.

    Raises:
        ConfigError: an embedding of the model depends on earlier tokens, so that a text cannot be embedded in pieces.
    """
    if backbone.info.ngram > 1:
        raise ConfigError(
            f"this model was built with backbone.ngram = {backbone.info.ngram}, so a session that writes every token as "
            f"it is read cannot embed a text in pieces: make the session read-only, or use a model with ngram = 1"
        )
    past, before = None, state
    if ids.shape[1] > 1:
        prompt = run(backbone, writer, reader, _all_real(ids[:, :-1]), state, use_cache=True)
        past, before = prompt.run.key_values, prompt.written.state
    adapters = {
        layer: OnlineAdapter(writer, reader, layer, before.layer(layer), continues=True)
        for layer in before.spec.layers
    }
    with evaluating(backbone.model):
        new = continue_row(backbone, ids[:, -1:], past, adapters, options)
    chosen = _all_real(torch.cat([ids[:, -1:], new], 1))
    return new, run(backbone, writer, reader, chosen, before, past=past, use_cache=True)


def _all_real(ids: Tensor) -> PackedTokens:
    return PackedTokens(ids, torch.ones_like(ids, dtype=torch.bool))


def _joined(scans: Sequence[ScanOutput], state: MemoryState) -> WriteOutput:
    """Join the layers' tensors into one state, and average their losses and traces."""
    layered = {
        name: torch.stack([scan.state[name] for scan in scans], 1)
        for name, spec in state.spec.tensors.items()
        if spec.per_layer
    }
    losses = {
        name: torch.stack([scan.losses[name] for scan in scans]).mean(0) for name in scans[0].losses
    }
    traces = [scan.trace() for scan in scans]
    trace = {name: torch.stack([t[name] for t in traces]).mean(0)[None] for name in traces[0]}
    return WriteOutput(replace(state, tensors={**state.tensors, **layered}), losses, trace)
