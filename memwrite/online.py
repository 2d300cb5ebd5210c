"""Run a backbone while an online writer writes and a layer reader reads at its attention layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from memwrite.backbone import TransformersBackbone
from memwrite.errors import ConfigError
from memwrite.protocols import (
    Additions,
    Backbone,
    KeyValues,
    LayerReader,
    OnlineWriter,
    Pass,
    Scanned,
    Written,
)
from memwrite.reading import continue_rows, evaluating
from memwrite.state import MemoryState, Tokens


class OnlineCorrection:
    """A writer, and perhaps a reader, at one layer of one call; a `Corrects`.

    Gradient checkpointing calls it again with the same hidden states, generation with those that follow.

    Args:
        scan: of the writer, for this layer, with mask and segments: (hidden, queries, state) -> Scanned.
        reader: None where nobody reads.
        layer: of the backbone.
        state: this layer's tensors before the call, (B, ...).
        follows: whether every call goes on from the state that the last one left.

    Attributes:
        scanned: of the last call; None before it.
    """

    def __init__(
        self,
        scan: Callable[[Tensor, Tensor | None, Mapping[str, Tensor]], Scanned],
        reader: LayerReader | None,
        layer: int,
        state: Mapping[str, Tensor],
        follows: bool,
    ) -> None:
        self._scan, self._reader, self._layer = scan, reader, layer
        self._state, self._follows = state, follows
        self.scanned: Scanned | None = None

    def __call__(self, hidden: Tensor) -> Additions:
        queries = None if self._reader is None else self._reader.queries(self._layer, hidden)
        self.scanned = self._scan(hidden, queries, self._state)
        if self._follows:
            self._state = self.scanned.state
        if self._reader is None or self.scanned.reads is None:
            return {}
        return self._reader.correct(self._layer, self.scanned.reads)

    def rows(self, index: Tensor) -> Self:
        """See `Corrects`; not for calls with a mask."""
        state = {name: tensor[index.to(tensor.device)] for name, tensor in self._state.items()}
        return type(self)(self._scan, self._reader, self._layer, state, self._follows)


@dataclass(frozen=True)
class Online:
    """What a run gives back: the backbone's pass, and what was written."""

    run: Pass
    written: Written


def run(
    backbone: Backbone,
    writer: OnlineWriter,
    reader: LayerReader | None,
    tokens: Tokens,
    state: MemoryState,
    *,
    write: bool = True,
    past: KeyValues | None = None,
    keep: bool = False,
) -> Online:
    """Read `tokens` with a state that is read and written on the way.

    Args:
        backbone: the language model.
        writer: its scan runs at the layers of its spec.
        reader: None for a write that nobody reads.
        tokens: (B, T), packed.
        state: B memories.
        write: False leaves the state as it is.
        past: keys and values of what came before in the same text.
        keep: whether the pass keeps keys and values.
    """

    embeddings = backbone.embed(tokens.ids)
    if not tokens.ids.shape[1]:
        return Online(Pass(embeddings, past), Written(state))

    mask = None if bool(tokens.mask.all()) else tokens.mask

    def scan(layer: int) -> Callable[[Tensor, Tensor | None, Mapping[str, Tensor]], Scanned]:
        return lambda hidden, queries, tensors: writer.scan(
            layer, hidden, mask, tokens.segments, queries, tensors, write
        )

    corrections = _attached(scan, reader, state, follows=False)
    done = backbone.forward(embeddings, past=past, corrections=corrections, keep=keep)
    found = [c.scanned for c in corrections.values() if c.scanned is not None]
    return Online(done, _written(found, state))


def continue_text(
    backbone: TransformersBackbone,
    writer: OnlineWriter,
    reader: LayerReader,
    ids: Tensor,
    state: MemoryState,
    options: Mapping[str, Any],
) -> tuple[Tensor, Online]:
    """Generate behind `ids`, every token written as soon as it is read, then write what was chosen.

    Args:
        backbone: the language model.
        writer: of granularity "token".
        reader: reads while the text is generated.
        ids: (1, T), T at least 1.
        state: one memory.
        options: of transformers' `generate`.

    Returns:
        New ids (1, T'), and the run over `ids` and them. Beams and samples are drawn with states of their own;
        what is written in the end is the text that was returned.

    Raises:
        ConfigError: the model's embeddings are of several tokens, and those of a text in pieces are others.
    """
    if backbone.info.ngram > 1:
        raise ConfigError(
            f"this model was built with backbone.ngram = {backbone.info.ngram}, so that a text cannot be embedded in "
            f"pieces, which is what a session does that writes every token as it is read: make it read-only, or take a "
            f"model without"
        )

    def everything(ids: Tensor) -> Tokens:
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    def scan(layer: int) -> Callable[[Tensor, Tensor | None, Mapping[str, Tensor]], Scanned]:
        return lambda hidden, queries, tensors: writer.scan(
            layer, hidden, None, None, queries, tensors, True
        )

    past, before = None, state
    if ids.shape[1] > 1:
        begun = run(backbone, writer, reader, everything(ids[:, :-1]), state, keep=True)
        past, before = begun.run.key_values, begun.written.state
    attached = _attached(scan, reader, before, follows=True)
    with evaluating(backbone.model):
        new = continue_rows(backbone, ids[:, -1:], past, None, attached, options)
    chosen = everything(torch.cat([ids[:, -1:], new], 1))
    return new, run(backbone, writer, reader, chosen, before, past=past, keep=True)


def _attached(
    scan: Callable[[int], Callable[[Tensor, Tensor | None, Mapping[str, Tensor]], Scanned]],
    reader: LayerReader | None,
    state: MemoryState,
    follows: bool,
) -> dict[int, OnlineCorrection]:
    """One for every layer of the state."""
    return {
        layer: OnlineCorrection(
            scan(layer), reader, layer, {n: t[:, i] for n, t in state.tensors.items()}, follows
        )
        for i, layer in enumerate(state.spec.layers)
    }


def _written(found: Sequence[Scanned], state: MemoryState) -> Written:
    """The layers' tensors as one state, and the means of their losses and traces."""
    tensors = {
        name: torch.stack([scanned.state[name] for scanned in found], 1) for name in state.tensors
    }
    losses = {
        name: torch.stack([scanned.losses[name] for scanned in found]).mean(0)
        for name in found[0].losses
    }
    traces = [scanned.trace() for scanned in found]
    trace = {name: torch.stack([t[name] for t in traces]).mean(0)[None] for name in traces[0]}
    return Written(MemoryState(state.spec, tensors), losses, trace)
