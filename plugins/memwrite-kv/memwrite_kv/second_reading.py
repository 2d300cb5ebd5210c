"""A second pass that repeats the context behind its own keys and values: whose attention tells what it takes to say it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from memwrite.protocols import Backbone, KeyValues, LayerActivations
from memwrite.state import PackedTokens


def first_reading(
    backbone: Backbone, context: PackedTokens, past: KeyValues | None
) -> tuple[KeyValues, float]:
    """Return keys and values of what is kept and of the context, and the scale of the attention logits."""
    scales: list[float] = []
    read = backbone.forward(
        backbone.embed(context.ids),
        past=past,
        lengths=context.lengths,
        use_cache=True,
        observe=lambda seen: scales.append(seen.scale),
    ).key_values
    assert read is not None
    mask = context.mask if past is None else torch.cat([past.mask, context.mask], 1)
    return replace(read, mask=mask), scales[0]


def repeat(
    backbone: Backbone,
    context: PackedTokens,
    read: KeyValues,
    chunk: int,
    observe: Callable[[LayerActivations, Tensor], None],
) -> None:
    """Read the context again, a chunk at a time, each right behind the whole.

    Args:
        backbone: the model.
        context: (B, T).
        read: what `first_reading` returned.
        chunk: tokens at a time.
        observe: is called at every layer of every chunk, with which (B, n) of its tokens are real.
    """
    embeddings = backbone.embed(context.ids)
    for start in range(0, context.ids.shape[1], chunk):
        part = context.columns(start, start + chunk)
        backbone.forward(
            embeddings[:, start : start + chunk],
            past=read,
            lengths=part.lengths,
            observe=lambda seen, real=part.mask: observe(seen, real),  # type: ignore[misc]
        )
