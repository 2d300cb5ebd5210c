"""The oracle: one text through a Llama whose layers have memory tokens before it, in loops a student can read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(
    model: Any, hidden: Tensor, memory: Tensor | None, added: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor]:
    """Return hidden states (T, D) behind the last layer, and what each layer gives at the last tokens, (L, n, D).

    Args:
        model: a `LlamaForCausalLM`.
        hidden: (T, D), embeddings of a text.
        memory: (L, M, D), what stands before it in each layer; None for nothing.
        added: to each of the last tokens as they enter a layer; None for nothing.
        tokens: n.
    """
    made = []
    for number, layer in enumerate(model.model.layers):
        size = 0 if memory is None else memory.shape[1]
        inputs = hidden if memory is None else torch.cat([memory[number], hidden])
        if added is not None:
            inputs = torch.cat([inputs[:-tokens], inputs[-tokens:] + added])
        length = len(inputs)
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        mask = torch.zeros(length, length, dtype=hidden.dtype).masked_fill(ahead, -1e30)
        rotation = model.model.rotary_emb(inputs[None], torch.arange(length)[None])
        output = layer(inputs[None], attention_mask=mask[None, None], position_embeddings=rotation)
        hidden = output[0][size:]
        made.append(hidden[-tokens:])
    return hidden, torch.stack(made)


def renewed(pool: list[Tensor], new: list[Tensor], forgotten: set[int]) -> list[Tensor]:
    """Return one layer's pool without the slots that are forgotten, and the new ones behind it."""
    return [slot for number, slot in enumerate(pool) if number not in forgotten] + new


def filled(new: list[Tensor], slots: int) -> list[Tensor]:
    """Return the pool that a first write makes: the new ones over and over, and what is left with the last of them."""
    rest = slots % len(new)
    return new * (slots // len(new)) + (new[-rest:] if rest else [])
