"""The oracle: the texts of one context one by one, in loops a student can read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def behind(model: Any, texts: list[list[int]], layer: int) -> Tensor:
    """Return the mean of what a layer gives at the last token of each text, (D,).

    Args:
        model: a transformers causal language model with `model.layers`.
        texts: ids.
        layer: its number.
    """
    seen: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0])[0, -1])

    hook = model.model.layers[layer].register_forward_hook(keep)
    for ids in texts:
        model(torch.tensor([ids]))
    hook.remove()
    return sum(seen[1:], seen[0]) / len(seen)


def steered(
    hidden: Tensor, positive: Tensor, negative: Tensor, strength: float, probed: bool
) -> Tensor:
    """Return one hidden state (D,) with α v added to it, or as it is where the probe does not fire."""
    direction = positive - negative
    middle = (positive + negative) / 2
    fires = float(direction @ hidden) < float(direction @ middle)
    return hidden + strength * direction if fires or not probed else hidden
