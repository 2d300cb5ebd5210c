"""Recurrent states of rows of different lengths: padding goes into them, so that the shorter rows are run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from memwrite.protocols import Backbone, KeyValues, LayerAdapter


def run_again(
    backbone: Backbone,
    kept: KeyValues,
    embeddings: Tensor,
    past: KeyValues | None,
    corrections: Mapping[int, LayerAdapter] | None,
    lengths: Tensor,
) -> KeyValues:
    """Replace recurrent states that padding has gone into: rows of one length are run again without it.

    Args:
        backbone: what has run.
        kept: the result.
        embeddings: (B, T, D) that it was given, as the arguments behind are.
        past: what stood before them.
        corrections: layer -> adapter of its projections.
        lengths: (B,), how many embeddings of each row are real.
    """
    assert kept.recurrent is not None
    states = {layer: dict(held) for layer, held in kept.recurrent.items()}
    for length in sorted({*lengths.tolist()} - {embeddings.shape[1]}):
        rows = (lengths == length).nonzero().flatten()
        before = None if past is None else past.rows(rows)
        ends = None if before is None else before.recurrent
        if length:
            run = backbone.forward(
                embeddings[rows, :length],
                past=before,
                corrections={n: c.rows(rows) for n, c in (corrections or {}).items()},
                use_cache=True,
            )
            ends = None if run.key_values is None else run.key_values.recurrent
        for layer, held in states.items():
            for name, tensor in held.items():
                end = (
                    tensor.new_zeros(len(rows), *tensor.shape[1:])
                    if ends is None
                    else ends[layer][name]
                )
                held[name] = tensor.index_copy(0, rows, end.to(tensor.dtype))
    return replace(kept, recurrent=states)
