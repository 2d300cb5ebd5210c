"""What transformers alone does, without memwrite: the oracle of reads and of generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite import Memory

#: The end token of the byte tokenizer.
END = 257


def plain_logits(memory: Memory, ids: list[int]) -> Tensor:
    """Return the logits (len(ids), V) of the language model's own forward, which embeds for itself."""
    tokens = torch.tensor([ids], dtype=torch.int64)
    logits: Tensor = memory.model(tokens, use_cache=False).logits[0]
    return logits


def plain_generate(model: Any, options: dict[str, Any], **inputs: Tensor) -> Tensor:
    """Return what transformers' own `generate` gives for one row, at most five tokens.

    Args:
        model: a model of transformers.
        options: further options of `generate`.
        inputs: `input_ids` (1, T) or `inputs_embeds` (1, T, D).
    """
    new: Tensor = model.generate(
        **inputs,
        attention_mask=torch.ones(next(iter(inputs.values())).shape[:2], dtype=torch.int64),
        eos_token_id=END,
        pad_token_id=END,
        do_sample=False,
        max_new_tokens=5,
        **options,
    )
    return new


def end_padded(row: Tensor, width: int) -> Tensor:
    """Return the ids (T,) filled up to (width,) with end tokens, as `generate` fills the rows of a batch."""
    return F.pad(row, (0, width - row.shape[-1]), value=END)
