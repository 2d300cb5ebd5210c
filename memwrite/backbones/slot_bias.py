"""What is added to the attention logits of a memory's slots: a bias for all queries, and a rule for each query's own."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.backbones.corrections import full_precision
from memwrite.errors import ConfigError
from memwrite.protocols import LayerActivations, SlotRule

# From an attention module's entry to the attention itself; a context variable, so threads never share it.
_waiting: ContextVar[SlotRule | None] = ContextVar("memwrite_slot_rule", default=None)


def enter(layer: int, number: int, hidden: Tensor, cache: Any, kwargs: dict[str, Any]) -> None:
    """Put the bias of a layer's slots into the mask of its attention, and let the rule wait for its queries.

    Args:
        layer: number of the attention layer.
        number: of the layer in the model.
        hidden: (B, T, D), what its attention receives.
        cache: may have a bias, a rule or both; see `CarriesAdapters`.
        kwargs: of the attention; its mask is changed in place.

    Raises:
        ConfigError: the attention takes none, or is compiled.
    """
    bias, rule = getattr(cache, "bias", None), getattr(cache, "rule", None)
    if bias is None and rule is None:
        return
    if torch.compiler.is_compiling():
        raise ConfigError("a bias on a memory's slots cannot be compiled: leave out compile")
    if "attention_mask" not in kwargs:
        raise ConfigError("this model's attention does not take a bias on its slots")
    slots = cache.get_seq_length(number) + hidden.shape[1]
    mask = _additive(kwargs["attention_mask"], hidden, slots)
    if bias is not None:
        mask = _plus(mask, bias[:, layer, :, None]).repeat_interleave(cache.bias_groups, 1)
    kwargs["attention_mask"] = mask.to(hidden.dtype)
    _waiting.set(rule)


def waiting() -> bool:
    """Say whether a rule waits for the queries of the layer that is running."""
    return _waiting.get() is not None


def ruled(mask: Tensor | None, seen: LayerActivations) -> Tensor | None:
    """Return the mask with what the waiting rule adds to it; the mask itself where none waits.

    Args:
        mask: as `enter` left it.
        seen: what the layer computed.
    """
    rule = _waiting.get()
    if rule is None:
        return mask
    _waiting.set(None)
    assert mask is not None
    with full_precision(seen.hidden):
        added = rule(seen)
    return _plus(mask, added).to(mask.dtype)


def leave(failed: bool) -> None:
    """Make sure that no rule was passed over, at the end of a layer.

    Raises:
        ConfigError: one was.
    """
    if _waiting.get() is not None:
        _waiting.set(None)
        if not failed:
            raise ConfigError(
                "this model's attention does not let a memory choose slots for each query"
            )


def _additive(mask: Tensor | None, hidden: Tensor, slots: int) -> Tensor:
    """Return a mask of any form as (B or 1, 1, T, S), to be added to logits."""
    if mask is None:
        length = hidden.shape[1]
        mask = torch.ones(length, slots, dtype=torch.bool, device=hidden.device)
        mask = mask.tril(slots - length)[None, None]
    if mask.dtype == torch.bool:
        low = torch.finfo(hidden.dtype).min
        mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, low)
    return mask


def _plus(mask: Tensor, bias: Tensor) -> Tensor:
    """Add a bias (B, H, T or 1, N) on the first N slots to an additive mask, in the wider of their dtypes."""
    low = torch.finfo(mask.dtype).min
    bias = F.pad(bias, (0, mask.shape[-1] - bias.shape[-1]))
    # The lowest number twice would be -inf, and a row of nothing but -inf is NaN.
    total = (mask.to(bias.dtype) + bias.clamp(min=low / 2)).clamp(min=low / 2)
    return torch.where(torch.isneginf(bias) | (mask <= low / 2), low, total)
