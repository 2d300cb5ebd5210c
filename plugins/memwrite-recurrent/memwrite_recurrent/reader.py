"""The reader: the model goes on from its own state."""

from __future__ import annotations

from torch import nn

from memwrite.protocols import Backbone, Conditioning
from memwrite.state import MemoryState, StateSpec
from memwrite_recurrent.config import NoParams
from memwrite_recurrent.kind import past_of


class RecurrentReader(nn.Module):
    """Reads a `recurrent` state as the model's own past; it has no weights."""

    accepts = frozenset({"recurrent"})

    def __init__(self, config: NoParams, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        self._backbone = backbone

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Return the states of all layers, as they are."""
        return Conditioning(key_values=past_of(state, self._backbone))
