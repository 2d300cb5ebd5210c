"""A pool's way into the model: as what each layer would have seen before the text."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.protocols import Backbone, KeyValues, ProjectionDeltas


class _Given:
    """Lets a layer receive these hidden states (B, N, D) in place of its own; a `ResidualAdapter`."""

    def __init__(self, hidden: Tensor) -> None:
        self._hidden = hidden

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {}

    def entering(self, hidden: Tensor) -> Tensor:
        return self._hidden

    def leaving(self, hidden: Tensor) -> Tensor:
        return hidden

    def rows(self, index: Tensor) -> _Given:
        """Return the adapter of these rows."""
        return _Given(self._hidden[index.to(self._hidden.device)])


def key_values(backbone: Backbone, hidden: Tensor, real: Tensor) -> KeyValues:
    """Return the keys and values that each layer's own norm and projections make of its part of a pool.

    Args:
        backbone: the model.
        hidden: (B, L, N, D), what each layer is to see; it has the positions from 0 on.
        real: (B,) bool, in which rows there is anything.
    """
    given = {layer: _Given(hidden[:, layer]) for layer in range(hidden.shape[1])}
    made = backbone.forward(hidden[:, 0], corrections=given, use_cache=True).key_values
    assert made is not None
    slots = hidden.shape[2]
    mask = real[:, None].expand(-1, slots)
    return KeyValues(made.keys, made.values, mask, real * torch.tensor(slots, device=real.device))
