"""The kind of state that is text: token ids, and the sentences that they belong to."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.state import MemoryState, StateKind, StateSpec, Tokens

#: Real tokens come first in every row, as `mask` says; ids and sentences of the others are 0. Sentences are numbered in the
#: order of the text, perhaps with gaps; tokens that open or close a text are in none, which is -1.
TEXT = StateKind(
    "text",
    {"ids": "T", "mask": "T", "sentence": "T"},
    dtypes={"ids": torch.int64, "mask": torch.bool, "sentence": torch.int64},
    summary="the text itself, as token ids: a baseline, not a memory",
)


def text_spec(tokens: int, bounded: bool) -> StateSpec:
    """Return the spec of a text of so many tokens."""
    return StateSpec(TEXT.name, dict.fromkeys(TEXT.required, (tokens,)), bounded=bounded)


def text_state(spec: StateSpec, tokens: Tokens, sentence: Tensor) -> MemoryState:
    """Return a state of those tokens (B, T) and their sentences (B, T); what padding holds does not count."""
    real = tokens.mask
    tensors = {"ids": tokens.ids * real, "mask": real.clone(), "sentence": sentence * real}
    return MemoryState(spec, tensors)
