"""Queries of several lengths, read up to their last tokens in one run, so that all are continued together from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memwrite.backbones.transformers import TransformersBackbone
from memwrite.inference.read import rows_of
from memwrite.protocols import Conditioning, KeyValues
from memwrite.state import PackedTokens

#: Options that ask nothing of the tokens before the answer, most of which are out of sight afterwards.
_FORGETFUL = frozenset(
    {
        "max_new_tokens", "max_time", "do_sample", "num_beams", "early_stopping", "length_penalty", "num_return_sequences",
        "temperature", "top_k", "top_p", "min_p", "streamer", "stopping_criteria", "use_cache",
    }
)  # fmt: skip


def can_read_ahead(
    backbone: TransformersBackbone, query: PackedTokens, options: Mapping[str, Any]
) -> bool:
    """Return whether the tokens before the last ones may be read by themselves, and there are any.

    Args:
        backbone: the language model.
        query: (B, T).
        options: of generation.
    """
    lengths = query.lengths
    return (
        backbone.reads_rows_apart
        and options.keys() <= _FORGETFUL
        and bool((lengths > 0).all())
        and bool((lengths > 1).any())
    )


def read_ahead(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    past: KeyValues | None,
    query: PackedTokens,
    copies: Tensor,
) -> tuple[KeyValues | None, PackedTokens]:
    """Return what each query has read before its last token, and the last tokens (B, 1).

    Args:
        backbone: the language model.
        conditioning: of the states.
        past: what the states are to the model.
        query: (B, T), at least one token of each.
        copies: for each query the row of its state.
    """
    last = (query.lengths - 1)[:, None]
    before = query.columns(0, int(last.max()))
    run = backbone.forward(
        backbone.embed(before.ids),
        past=None if past is None else past.rows(copies),
        corrections=rows_of(conditioning, copies),
        lengths=last[:, 0],
        use_cache=True,
    )
    ids = query.ids.gather(1, last)
    return run.key_values, PackedTokens(ids, torch.ones_like(ids, dtype=torch.bool))
