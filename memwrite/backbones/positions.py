"""The position of every token, and a refusal of those that a model does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memwrite.backbones import rotary
from memwrite.errors import PositionsExceeded
from memwrite.protocols import KeyValues


def of_tokens(
    embeddings: Tensor, past: KeyValues | None, lengths: Tensor | None, config: Any
) -> Tensor:
    """Return the positions (B, T) of embeddings (B, T, D) behind `past`.

    Args:
        embeddings: real ones first in their rows.
        past: what was read before.
        lengths: (B,), how many of each row are real, so that padding needs no position; by default all are.
        config: of the transformers model.

    Raises:
        PositionsExceeded: the model has too few.
    """
    steps, limit = _steps(embeddings), rotary.positions(config)
    length = steps.shape[1]
    positions = steps if past is None else steps + past.next_position[:, None]
    # Without a past their number is known without a look at the tensor, which could not be compiled.
    used = length if past is None or not length else int(positions[:, -1].max()) + 1
    if used > limit and lengths is not None:
        # The longest row beside it is no limit of a row.
        used = int((lengths + (0 if past is None else past.next_position)).max())
        positions = positions.clamp(max=limit - 1)
    if used > limit:
        beyond = getattr(config, "max_position_embeddings", 0) > limit
        why = " (beyond them its rotary embedding changes for all)" if beyond else ""
        raise PositionsExceeded(
            f"{used} positions are needed, but the model has only {limit}{why}: shorten the context or query"
        )
    return positions


def real(embeddings: Tensor, lengths: Tensor | None) -> Tensor:
    """Say which of the embeddings (B, T, D) are real, (B, T)."""
    steps = _steps(embeddings)
    return steps < (steps.shape[1] if lengths is None else lengths[:, None])


def _steps(embeddings: Tensor) -> Tensor:
    batch, length = embeddings.shape[:2]
    return torch.arange(length, device=embeddings.device).expand(batch, length)
