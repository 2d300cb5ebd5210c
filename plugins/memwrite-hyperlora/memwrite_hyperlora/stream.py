"""What every layer of a model receives of a text, seen from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memwrite.protocols import Backbone, ProjectionDeltas
from memwrite.state import PackedTokens


class Listener:
    """Keeps what one layer receives during one run, and changes nothing; a `ResidualAdapter`.

    Args:
        skip: let the layer give what it receives, as if it were not there.

    Attributes:
        heard: (B, T, D), once the run is over.
    """

    heard: Tensor

    def __init__(self, skip: bool = False) -> None:
        self._skip = skip

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {}

    def entering(self, hidden: Tensor) -> Tensor:
        """Keep what the layer receives."""
        self.heard = hidden
        return hidden

    def leaving(self, hidden: Tensor) -> Tensor:
        """Let pass what the layer gives."""
        return self.heard if self._skip else hidden

    def rows(self, index: Tensor) -> Self:
        """Return the adapter of these rows: the same, since it differs by nothing."""
        return self


def received(backbone: Backbone, ids: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Return what these layers receive of ids (B, T), each (B, T, D)."""
    listeners = {layer: Listener() for layer in layers}
    backbone.forward(backbone.embed(ids), corrections=listeners)
    return [listener.heard for listener in listeners.values()]


def received_up_to_the_norm(backbone: Backbone, ids: Tensor) -> Tensor:
    """Return what every layer receives of ids (B, T), the last layer's after the model's final norm: (B, L, T, D).

    So Doc-to-LoRA has it, which takes the model's last layer away and asks for its hidden states.
    """
    last = backbone.info.layers - 1
    listeners = {layer: Listener(skip=layer == last) for layer in range(last + 1)}
    final = backbone.forward(backbone.embed(ids), corrections=listeners).hidden
    return torch.stack([*(listeners[layer].heard for layer in range(last)), final], 1)


def windows(context: PackedTokens, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut every row into the fewest windows of at most `size` tokens, of one length but for the last one.

    Returns:
        ids (N, W), mask (N, W) bool, and the row of each window (N,), in order. Rows without tokens have none.
    """
    pieces: list[Tensor] = []
    rows: list[int] = []
    for row, (ids, length) in enumerate(zip(context.ids, context.lengths.tolist(), strict=True)):
        if length:
            count = -(-length // size)
            cut = ids[:length].split(-(-length // count))
            pieces += cut
            rows += [row] * len(cut)
    mask = pad_sequence([torch.ones_like(piece, dtype=torch.bool) for piece in pieces], True)
    return pad_sequence(pieces, True), mask, torch.tensor(rows, device=mask.device)
