"""Run a backbone under a conditioning: the memory is prefilled once, every query and decode step reuses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.backbones.generation import check_options
from memwrite.backbones.sliding_window import without_holes
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import InputError, PositionsExceeded
from memwrite.inference.prefill_cache import PrefillOutput
from memwrite.protocols import (
    Backbone,
    BackboneInfo,
    Conditioning,
    KeyValues,
    LayerAdapter,
    ReadOutput,
)
from memwrite.state import Tokens


def read(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    query: Tokens,
    prefilled: PrefillOutput | None = None,
) -> ReadOutput:
    """Return the logits of [memory; query] for queries (B, T) or (B, Q, T); see `Memory.read`."""
    conditioning = _without_empty_prefix(conditioning)
    packed, order = query.flat().pack()
    copies = _copies(query)
    _warn_beyond_window(backbone, conditioning, packed.ids.shape[1])
    corrections = _rows(conditioning, copies)
    embeddings = backbone.embed(packed.ids)
    if backbone.supports_cache:
        done = prefilled or prefill(backbone, conditioning)
        past, first = done.key_values, done.first_logits
        if not packed.ids.shape[1]:
            none = backbone.logits(embeddings)
            return ReadOutput(none.new_zeros(*query.ids.shape, none.shape[-1]), first)
        past = None if past is None else past.rows(copies)
        hidden = backbone.forward(
            embeddings, past=past, corrections=corrections, lengths=packed.lengths
        ).hidden
    else:
        hidden, first = _unrolled(backbone, conditioning, embeddings, copies)
    logits = backbone.logits(hidden) * packed.mask[..., None]
    full = logits.new_zeros(*query.flat().ids.shape, logits.shape[-1])
    full = full.scatter(1, order[..., None].expand_as(logits), logits)
    return ReadOutput(full.reshape(*query.ids.shape, logits.shape[-1]), first)


def generate(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    query: Tokens,
    options: Mapping[str, Any],
    prefilled: PrefillOutput | None = None,
) -> Tensor:
    """Return the continuations (B·Q·n, T') of queries (B, T) or (B, Q, T); see `Memory.generate`."""
    conditioning = _without_empty_prefix(conditioning)
    with evaluating(backbone.model):
        past = (prefilled or prefill(backbone, conditioning)).key_values
        return _generate(backbone, conditioning, query, options, past)


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


def _without_empty_prefix(conditioning: Conditioning) -> Conditioning:
    """Treat a prefix of no vectors as none, since it has no last position to predict from."""
    prefix = conditioning.prefix
    if prefix is None or prefix.shape[1]:
        return conditioning
    return replace(conditioning, prefix=None, prefix_lengths=None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run without dropout and without gradient checkpointing, which drops the cache that generation lives on."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _generate(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    query: Tokens,
    options: Mapping[str, Any],
    past: KeyValues | None,
) -> Tensor:
    check_options(options)
    packed, copies = query.flat().packed(), _copies(query)
    corrections = conditioning.corrections or {}
    end = backbone.info.eos_id
    by_row: dict[int, Tensor] = {}
    ends = _last_of_prefix(conditioning)
    for length, count, opens, group in _groups(
        backbone, conditioning, past, packed, copies, options
    ):
        rows = copies[group]
        before = past if length or opens else _before_last(backbone, conditioning, past)
        new = _continue_group(
            backbone,
            packed.ids[group, :length],
            _past(backbone, before, rows),
            None if ends is None or opens else ends[rows],
            {layer: c.rows(rows) for layer, c in corrections.items()},
            {**options, "max_new_tokens": count},
        )
        by_row |= zip(group, new.chunk(len(group)), strict=True)
    width = max(new.shape[1] for new in by_row.values())
    return torch.cat(
        [F.pad(by_row[row], (0, width - by_row[row].shape[1]), value=end) for row in sorted(by_row)]
    )


def _groups(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    past: KeyValues | None,
    packed: Tokens,
    copies: Tensor,
    options: Mapping[str, Any],
) -> list[tuple[int, int, bool, list[int]]]:
    """Return query length, number of new tokens, whether it opens a text, and rows of each group generated together.

    Rows of one length at a time, so that no padding comes between a memory and its continuation, and of one number of
    new tokens, so that no row is cut off at the room of another. Under a sliding window the rows of a group have
    memories of one length besides, so that no padding is in them.
    """
    lengths = packed.lengths
    # An empty query needs a token of its own to begin with, unless a prefix has one.
    opens = lengths == 0
    if conditioning.prefix_lengths is not None:
        opens = opens & (conditioning.prefix_lengths[copies] == 0)
    elif conditioning.prefix is not None:
        opens = torch.zeros_like(opens)
    used = lengths + opens.to(lengths.dtype)
    memory = torch.zeros_like(lengths)
    if past is not None:
        used = used + past.next_position[copies]
        if backbone.windows.size is not None:
            memory = past.mask.sum(1)[copies]
    counts = [_count(backbone.info, each, options) for each in used.tolist()]
    groups: dict[tuple[int, int, int, bool], list[int]] = {}
    keys = zip(lengths.tolist(), memory.tolist(), counts, opens.tolist(), strict=True)
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return [
        (length, count, opening, rows)
        for (length, _, count, opening), rows in sorted(groups.items())
    ]


def _last_of_prefix(conditioning: Conditioning) -> Tensor | None:
    """Return (B, 1, D), the last vector of each row's prefix; any vector in a row that has none."""
    prefix, lengths = conditioning.prefix, conditioning.prefix_lengths
    if prefix is None or lengths is None:
        return None if prefix is None else prefix[:, -1:]
    return prefix[torch.arange(len(prefix), device=prefix.device), lengths.clamp(min=1) - 1][
        :, None
    ]


def _count(info: BackboneInfo, used: int, options: Mapping[str, Any]) -> int:
    """Return how many new tokens may stand behind `used` positions.

    Raises:
        PositionsExceeded: there is no position left.
    """
    room = info.positions - used
    if room < 1:
        raise PositionsExceeded(
            f"memory and query fill all {info.positions} positions of the model"
        )
    asked = options.get("max_new_tokens")
    return room if asked is None else min(asked, room)


def _before_last(
    backbone: TransformersBackbone, conditioning: Conditioning, past: KeyValues | None
) -> KeyValues | None:
    """Return what stands before the last vector of a prefix, given what stands behind it."""
    if conditioning.prefix is None or past is None:
        return past
    lengths = conditioning.prefix_lengths
    if past.recurrent is None and lengths is None:
        return past.drop_last()
    # Recurrent layers cannot go back, and in a batch of different lengths the last is not one slot.
    shorter = replace(
        conditioning,
        prefix=conditioning.prefix[:, :-1],
        prefix_lengths=None if lengths is None else (lengths - 1).clamp(min=0),
    )
    return prefill(backbone, shorter).key_values


def _past(backbone: TransformersBackbone, past: KeyValues | None, rows: Tensor) -> KeyValues | None:
    if past is None:
        return None
    past = past.rows(rows)
    return past if backbone.windows.size is None else without_holes(past)


def continue_row(
    backbone: TransformersBackbone,
    ids: Tensor,
    past: KeyValues | None,
    corrections: Mapping[int, LayerAdapter],
    options: Mapping[str, Any],
) -> Tensor:
    """Generate behind ids (1, T), T at least 1.

    Raises:
        InputError: the model has no position left, or an option cannot be honoured.
    """
    check_options(options)
    used = ids.shape[1] + (0 if past is None else int(past.next_position[0]))
    count = _count(backbone.info, used, options)
    return _continue_group(
        backbone, ids, past, None, corrections, {**options, "max_new_tokens": count}
    )


def _continue_group(
    backbone: TransformersBackbone,
    ids: Tensor,
    past: KeyValues | None,
    last: Tensor | None,
    corrections: Mapping[int, LayerAdapter],
    options: Mapping[str, Any],
) -> Tensor:
    """Generate behind ids (B, T) of one length.

    Args:
        backbone: the language model.
        ids: where T is 0, generation begins at the last vector of a prefix, or opens a text.
        past: what comes before; before that last vector too, where T is 0.
        last: (B, 1, D), the last vector, if there is a prefix.
        corrections: as in `Conditioning`.
        options: checked options.
    """
    info = backbone.info
    if ids.shape[1]:
        last = None
    elif last is not None:
        last = last.to(info.dtype)
    else:
        # Nothing to predict from: open a text.
        ids = ids.new_full((ids.shape[0], 1), info.bos_id)
    new = backbone.generate(
        ids, past=past, last=last, corrections=corrections or None, options=options
    )
    if past is not None:
        used = (ids.shape[1] or 1) + int(past.next_position.max())
        backbone.windows.warn_beyond(used + new.shape[1] - 1)
    return new


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


def _copies(query: Tokens) -> Tensor:
    """Return for each flat query the row of its state."""
    rows = torch.arange(query.ids.shape[0], device=query.ids.device)
    return rows if query.ids.ndim == 2 else rows.repeat_interleave(query.ids.shape[1])


def _rows(conditioning: Conditioning, copies: Tensor) -> dict[int, LayerAdapter] | None:
    if not conditioning.corrections:
        return None
    return {layer: c.rows(copies) for layer, c in conditioning.corrections.items()}


def prefill(backbone: TransformersBackbone, conditioning: Conditioning) -> PrefillOutput:
    """Return keys and values of the whole memory, and the logits at its last position."""
    conditioning = _without_empty_prefix(conditioning)
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
    prefix, corrections = conditioning.prefix, _rows(conditioning, copies)
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
