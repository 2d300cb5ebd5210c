"""Sliding windows: layers that only attend to the last real tokens, however the rows are padded."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memwrite.backbones.decoder_layers import ATTENDING, FULL, RECURRENT, SLIDING, STATELESS
from memwrite.errors import ConfigError
from memwrite.protocols import KeyValues
from memwrite.utils.padding import real_first


class Windows:
    """Which layers of a model see how far.

    Args:
        config: of a transformers language model.

    Attributes:
        size: how many tokens a local layer sees, its own included; None where every layer sees all.

    Raises:
        ConfigError: the model has layers of another kind than full or sliding attention.
    """

    def __init__(self, config: Any) -> None:
        # Families without it (Mistral, Phi-3) treat all layers alike.
        self._kinds: list[str] | None = getattr(config, "layer_types", None)
        window: int | None = getattr(config, "sliding_window", None)
        for kind in self._kinds or ():
            if kind not in ATTENDING | RECURRENT | STATELESS:
                raise ConfigError(
                    f"'{config.model_type}' has layers of {kind}, which are not supported"
                )
        if SLIDING in (kinds := set(self._kinds or ())) and not kinds <= {FULL, SLIDING}:
            raise ConfigError(
                f"'{config.model_type}' has sliding windows beside recurrent layers, which is not supported: take one "
                f"whose attention layers see everything"
            )
        # Some families name a window and do without it.
        self.size = window if SLIDING in (self._kinds or [SLIDING]) else None

    def mask(
        self, past: KeyValues | None, length: int, dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor] | None:
        """Return what `length` new tokens behind `past` may see, in the form that the model takes; None for all."""
        if past is None or bool(past.mask.all()):
            return None
        new = torch.ones(past.mask.shape[0], length, dtype=torch.bool, device=past.mask.device)
        real = torch.cat([past.mask, new], 1)
        if self.size is None:
            return real.long()
        # transformers would count the slots of padding too.
        if self._kinds is None:
            return _visible(real, length, self.size, dtype)
        sizes = {FULL: real.shape[1], SLIDING: self.size}
        return {kind: _visible(real, length, sizes[kind], dtype) for kind in set(self._kinds)}

    def warn_beyond(self, tokens: int) -> None:
        """Warn where a memory at the start of `tokens` tokens is not seen by all layers to their end."""
        if self.size is not None and tokens > self.size:
            warnings.warn(
                f"memory and text are longer than the model's sliding window of {self.size} tokens: its "
                f"local layers lose sight of the memory",
                stacklevel=3,
            )


def _visible(real: Tensor, length: int, window: int, dtype: torch.dtype) -> Tensor:
    """Return (B, 1, T, S) to add to attention scores: S slots, real ones (B, S) marked, the last T of them new."""
    rank = real.cumsum(1)
    distance = rank[:, -length:, None] - rank[:, None, :]
    visible = (distance >= 0) & (distance < window) & real[:, None, :]
    hidden = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=real.device).masked_fill(
        ~visible, hidden
    )[:, None]


def without_holes(past: KeyValues) -> KeyValues:
    """Return `past` without the slots of padding; the rows have the same number of real ones."""
    order = real_first(past.mask)
    index = order[:, None, None, :, None]
    keys, values = (
        t.gather(3, index.expand(*t.shape[:3], -1, t.shape[-1])) for t in (past.keys, past.values)
    )
    bias, rule = past.bias, past.rule
    if bias is not None:
        bias = bias.gather(3, order[:, None, None].expand(*bias.shape[:3], -1))
    if rule is not None:
        rows = torch.arange(len(order), device=order.device)[:, None]
        rule = rule.map(lambda tensor: tensor[rows, order])
    mask = past.mask.gather(1, order)
    return replace(past, keys=keys, values=values, mask=mask, bias=bias, rule=rule)
