"""Run a backbone under a conditioning: the memory is prefilled once, and every query reuses it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import InputError
from memwrite.inference.prefill_cache import PrefillOutput
from memwrite.protocols import Backbone, Conditioning, LayerAdapter, ReadOutput
from memwrite.state import PackedTokens, Tokens


@dataclass(frozen=True)
class HiddenStates:
    """What a backbone makes of queries behind a memory, before its vocabulary head; N = B or B · Q queries.

    Attributes:
        hidden: (N, T', D) last hidden states of the real tokens.
        packed: the queries (N, T'), real tokens first.
        order: (N, T') the column of each of them in the query as it was given.
        first_logits: as in `ReadOutput`.
    """

    hidden: Tensor
    packed: PackedTokens
    order: Tensor
    first_logits: Tensor | None


def read(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    query: Tokens,
    prefilled: PrefillOutput | None = None,
) -> ReadOutput:
    """Return the logits of [memory; query] for queries (B, T) or (B, Q, T); see `Memory.read`."""
    run = hidden_states(backbone, conditioning, query, prefilled)
    if not run.packed.ids.shape[1]:
        none = backbone.logits(backbone.embed(run.packed.ids))
        return ReadOutput(none.new_zeros(*query.ids.shape, none.shape[-1]), run.first_logits)
    logits = backbone.logits(run.hidden) * run.packed.mask[..., None]
    full = logits.new_zeros(*query.flat().ids.shape, logits.shape[-1])
    full = full.scatter(1, run.order[..., None].expand_as(logits), logits)
    return ReadOutput(full.reshape(*query.ids.shape, logits.shape[-1]), run.first_logits)


def hidden_states(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    query: Tokens,
    prefilled: PrefillOutput | None = None,
) -> HiddenStates:
    """Run queries (B, T) or (B, Q, T) behind their memories."""
    conditioning = without_empty_prefix(conditioning)
    packed, order = query.flat().pack()
    copies = copies_of(query)
    _warn_beyond_window(backbone, conditioning, packed.ids.shape[1])
    corrections = rows_of(conditioning, copies)
    embeddings = backbone.embed(packed.ids)
    if backbone.supports_cache:
        done = prefilled or prefill(backbone, conditioning)
        past, hidden, first = done.key_values, embeddings, done.first_logits
        if packed.ids.shape[1]:
            past = None if past is None else past.rows(copies)
            hidden = backbone.forward(
                embeddings, past=past, corrections=corrections, lengths=packed.lengths
            ).hidden
    else:
        hidden, first = _unrolled(backbone, conditioning, embeddings, copies)
    return HiddenStates(hidden, packed, order, first)


def prefill(backbone: TransformersBackbone, conditioning: Conditioning) -> PrefillOutput:
    """Return keys and values of the whole memory, and the logits at its last position."""
    conditioning = without_empty_prefix(conditioning)
    if conditioning.prefix is None:
        return PrefillOutput(conditioning.key_values, None)
    lengths = conditioning.prefix_lengths
    done = backbone.forward(
        conditioning.prefix,
        past=conditioning.key_values,
        corrections=conditioning.corrections,
        lengths=lengths,
        use_cache=True,
    )
    return PrefillOutput(done.key_values, _first_logits(backbone, done.hidden, lengths))


def check_fits(conditioning: Conditioning, backbone: Backbone) -> None:
    """Refuse what a memory brings where it is not of the model's sizes, whatever its state file claims.

    Raises:
        InputError: it is not.
    """
    prefix, past, info = conditioning.prefix, conditioning.key_values, backbone.info
    if prefix is not None and prefix.shape[-1] != info.hidden_size:
        raise InputError(
            f"this memory is of vectors of {prefix.shape[-1]} numbers, but the model's have {info.hidden_size}: "
            f"it was written for another model"
        )
    if past is None:
        return
    keys, values = tuple(past.keys.shape[1:]), tuple(past.values.shape[1:])
    fitting = (info.layers, info.kv_heads, past.mask.shape[1], info.head_dim)
    if not keys == values == fitting:
        raise InputError(
            f"this memory's keys are {keys} and its values {values}, but both should be {fitting} (layers, heads, "
            f"slots, width): it was written for another model"
        )
    for number, states in (past.recurrent or {}).items():
        for name, tensor in states.items():
            spec = backbone.recurrent.get(number, {}).get(name)
            if spec is None or tuple(tensor.shape[1:]) != spec.shape:
                raise InputError(
                    f"this memory holds a '{name}' state {tuple(tensor.shape[1:])} of layer {number}, which the model "
                    f"{'does not have' if spec is None else f'has as {spec.shape}'}: it was written for another model"
                )
    if (past.next_position < 0).any():
        raise InputError("this memory's next position is negative")


def without_empty_prefix(conditioning: Conditioning) -> Conditioning:
    """Treat a prefix of no vectors as none, since it has no last position to predict from."""
    prefix = conditioning.prefix
    if prefix is None or prefix.shape[1]:
        return conditioning
    return replace(conditioning, prefix=None, prefix_lengths=None)


def copies_of(query: Tokens) -> Tensor:
    """Return for each flat query the row of its state."""
    rows = torch.arange(query.ids.shape[0], device=query.ids.device)
    return rows if query.ids.ndim == 2 else rows.repeat_interleave(query.ids.shape[1])


def rows_of(conditioning: Conditioning, copies: Tensor) -> dict[int, LayerAdapter] | None:
    if not conditioning.corrections:
        return None
    return {layer: c.rows(copies) for layer, c in conditioning.corrections.items()}


def _warn_beyond_window(
    backbone: TransformersBackbone, conditioning: Conditioning, length: int
) -> None:
    if backbone.windows.size is None:
        return
    past, memory = conditioning.key_values, conditioning.longest_prefix
    if past is not None and past.mask.any():
        memory += int(past.mask.sum(1).max())
    if memory:
        backbone.windows.warn_beyond(memory + length)


def _first_logits(backbone: TransformersBackbone, hidden: Tensor, lengths: Tensor | None) -> Tensor:
    """Return (B, V) logits at the last real position of hidden (B, M, D); zero where a row has none."""
    if lengths is None:
        return backbone.logits(hidden[:, -1])
    rows = torch.arange(len(hidden), device=hidden.device)
    return backbone.logits(hidden[rows, lengths.clamp(min=1) - 1]) * (lengths > 0)[:, None]


def _unrolled(
    backbone: TransformersBackbone, conditioning: Conditioning, embeddings: Tensor, copies: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Make the naive run, which gradient checkpointing needs: every query behind its own copy of the prefix."""
    prefix, corrections = conditioning.prefix, rows_of(conditioning, copies)
    past = conditioning.key_values
    if prefix is None:
        return backbone.forward(embeddings, past=past, corrections=corrections).hidden, None
    slots, each = prefix.shape[1], len(copies) // prefix.shape[0]
    inputs = torch.cat([prefix[copies].to(embeddings.dtype), embeddings], 1)
    lengths = conditioning.prefix_lengths
    if lengths is None:
        hidden = backbone.forward(inputs, past=past, corrections=corrections).hidden
    else:
        # A row's query comes straight behind the real part of its prefix.
        place = torch.arange(inputs.shape[1], device=inputs.device)
        padding = (place >= lengths[copies, None]) & (place < slots)
        order = padding.to(torch.uint8).argsort(dim=1, stable=True)[..., None]
        run = backbone.forward(
            inputs.gather(1, order.expand_as(inputs)),
            past=past,
            corrections=corrections,
            lengths=(~padding).sum(1),
        ).hidden
        hidden = torch.zeros_like(run).scatter(1, order.expand_as(run), run)
    first = _first_logits(backbone, hidden[::each, :slots], lengths)
    return hidden[:, slots:], first
