"""Generate under a conditioning: rows that need no padding behind their memories are continued together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.backbones.generation import RowStreams, check_options
from memwrite.backbones.sliding_window import without_holes
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import PositionsExceeded
from memwrite.inference.prefill_cache import PrefillOutput
from memwrite.inference.read import copies_of, prefill, without_empty_prefix
from memwrite.inference.read_ahead import can_read_ahead, read_ahead
from memwrite.protocols import BackboneInfo, Conditioning, KeyValues, LayerAdapter
from memwrite.state import Tokens


def generate(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    query: Tokens,
    options: Mapping[str, Any],
    prefilled: PrefillOutput | None = None,
) -> Tensor:
    """Return the continuations (B·Q·n, T') of queries (B, T) or (B, Q, T); see `Memory.generate`."""
    conditioning = without_empty_prefix(conditioning)
    with evaluating(backbone.model):
        past = (prefilled or prefill(backbone, conditioning)).key_values
        return _generate(backbone, conditioning, query, options, past)


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
    packed, copies = query.flat().packed(), copies_of(query)
    held = copies
    corrections = conditioning.corrections or {}
    end = backbone.info.eos_id
    by_row: dict[int, Tensor] = {}
    ends = _last_of_prefix(conditioning)
    groups = _groups(backbone, conditioning, past, packed, copies, held, options)
    if len(groups) > 1 and can_read_ahead(backbone, packed, options):
        past, packed = read_ahead(backbone, conditioning, past, packed, copies)
        held = torch.arange(len(copies), device=copies.device)
        groups = _groups(backbone, conditioning, past, packed, copies, held, options)
    for length, count, opens, group in groups:
        rows = copies[group]
        own = {**options, "max_new_tokens": count}
        if isinstance(options.get("streamer"), RowStreams):
            own["streamer"] = options["streamer"].rows(group)
        before = past if length or opens else _before_last(backbone, conditioning, past)
        new = _continue_group(
            backbone,
            packed.ids[group, :length],
            _past(backbone, before, held[group]),
            None if ends is None or opens else ends[rows],
            {layer: c.rows(rows) for layer, c in corrections.items()},
            own,
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
    held: Tensor,
    options: Mapping[str, Any],
) -> list[tuple[int, int, bool, list[int]]]:
    """Return query length, number of new tokens, whether it opens a text, and rows of each group generated together.

    Args:
        backbone: the language model.
        conditioning: of the states.
        past: what stands before the queries.
        packed: (B, T), the queries.
        copies: for each of them the row of its state.
        held: for each of them the row of `past`.
        options: of generation.

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
        used = used + past.next_position[held]
        if backbone.windows.size is not None:
            memory = past.mask.sum(1)[held]
    counts = [_count(backbone.info, each, options) for each in used.tolist()]
    groups: dict[tuple[int, int, int, bool], list[int]] = {}
    keys = zip(lengths.tolist(), memory.tolist(), counts, opens.tolist(), strict=True)
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return [
        (length, count, opening, rows)
        for (length, _, count, opening), rows in sorted(groups.items())
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


def _last_of_prefix(conditioning: Conditioning) -> Tensor | None:
    """Return (B, 1, D), the last vector of each row's prefix; any vector in a row that has none."""
    prefix, lengths = conditioning.prefix, conditioning.prefix_lengths
    if prefix is None or lengths is None:
        return None if prefix is None else prefix[:, -1:]
    return prefix[torch.arange(len(prefix), device=prefix.device), lengths.clamp(min=1) - 1][
        :, None
    ]


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
