"""Mamba 1 in pieces: transformers uses a kept state for single tokens only, and drops it before several.

See the condition `seq_len == 1` in `MambaMixer.forward` (transformers 5.23); found by comparing two pieces with the whole.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from memwrite.backbones.cache import cache_argument

#: Types of models with such mixers.
_TYPES = frozenset({"mamba", "falcon_mamba", "jamba"})


def attach(model: Any) -> None:
    """Make a model with Mamba-1 layers read several tokens behind a kept state one by one; leave others alone."""
    base = model.base_model
    if model.config.model_type in _TYPES and not isinstance(base.forward, partial):
        base.forward = partial(_stepping, base, base.forward)


def _stepping(
    base: Any, forward: Any, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any
) -> Any:
    cache = kwargs.get(cache_argument(kwargs))
    inputs = base.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
    if cache is None or inputs.shape[1] < 2 or not cache.has_previous_state():
        return forward(inputs_embeds=inputs, **kwargs)
    kwargs["use_cache"] = True
    mask, positions = kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
    hidden = []
    for step in range(inputs.shape[1]):
        here = slice(step, step + 1)
        more = {} if positions is None else {"position_ids": positions[:, here]}
        if mask is not None:
            more["attention_mask"] = mask[:, : mask.shape[1] - inputs.shape[1] + step + 1]
        output = forward(inputs_embeds=inputs[:, here], **more, **kwargs)
        hidden.append(output.last_hidden_state)
    output.last_hidden_state = torch.cat(hidden, 1)
    return output
