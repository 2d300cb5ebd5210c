"""The readers: each query of each head attends to its own few slots of the memory, and to the text before it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from memwrite.modules.layers import chosen_layers
from memwrite.modules.nearest import cosines, nearest, without_positions
from memwrite.modules.positions import moved
from memwrite.protocols import Backbone, Conditioning, KeyValues, LayerActivations, SlotRule
from memwrite.state import MemoryState, StateSpec
from memwrite_neighbours.config import ExtendedMindConfig, MemorizingConfig
from memwrite_neighbours.kind import NEIGHBOURS


class ExtendedMindReader(nn.Module):
    """Lets each query attend to the slots whose keys point its way most, in one softmax with the text before it.

    Args:
        config: see `ExtendedMindConfig`.
        backbone: the model that reads; never changed.
        spec: of the states.

    Raises:
        ConfigError: the model has no such layer.
    """

    accepts = frozenset({NEIGHBOURS.name})

    def __init__(self, config: ExtendedMindConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        self.config = config
        self._backbone = backbone
        self._layers = frozenset(chosen_layers(config.layers, backbone.info))

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Put the memory before the query, or at its first position, and hide from each query what is not nearest."""
        mask, keys, own = state["mask"], state["keys"], self.config.positions == "own"
        places = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        seen = mask if self.config.special else mask & ~state["special"]
        rule = SlotRule({"keys": keys.movedim(3, 1), "seen": seen}, self._hidden)
        return Conditioning(
            key_values=KeyValues(
                moved(self._backbone, keys, places) if own else keys,
                state["values"],
                mask,
                mask.sum(1) if own else torch.zeros_like(mask.sum(1)),
                rule=rule,
            )
        )

    def _hidden(self, tensors: Mapping[str, Tensor], seen: LayerActivations) -> Tensor:
        keys, queries = _keys(tensors, seen), seen.queries
        if seen.layer not in self._layers:
            return _nothing(seen, keys.shape[2])
        if self.config.positions == "own":
            queries = without_positions(self._backbone, seen)
        similarity = cosines(queries, keys)
        chosen = nearest(similarity, tensors["seen"], self.config.nearest, self.config.similarity)
        return torch.zeros_like(similarity).masked_fill(~chosen, -torch.inf)


class MemorizingReader(nn.Module):
    """Lets each query attend to its nearest slots by learned multiples of cosines, in one softmax with the text before it.

    The memory has no positions: queries and keys are compared without theirs.

    Args:
        config: see `MemorizingConfig`.
        backbone: the model that reads; never changed.
        spec: of the states.

    Raises:
        ConfigError: the model has no such layer.
    """

    accepts = frozenset({NEIGHBOURS.name})

    def __init__(self, config: MemorizingConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        info = backbone.info
        self.config = config
        self._backbone = backbone
        self._layers = frozenset(chosen_layers(config.layers, info))
        start = torch.full(
            (info.layers, info.heads), math.log(config.scale), dtype=info.state_dtype
        )
        #: Logarithms of the factors of the cosines.
        self.scale = nn.Parameter(start)

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Put the memory before the query, and say what the logits of its slots are for each query."""
        mask, keys = state["mask"], state["keys"]
        rule = SlotRule({"keys": keys.movedim(3, 1), "seen": mask}, self._logits)
        return Conditioning(
            key_values=KeyValues(keys, state["values"], mask, mask.sum(1), rule=rule)
        )

    def _logits(self, tensors: Mapping[str, Tensor], seen: LayerActivations) -> Tensor:
        """Return what turns the model's own logits into those of the rule."""
        keys = _keys(tensors, seen)
        if seen.layer not in self._layers:
            return _nothing(seen, keys.shape[2])
        factor = self.scale[seen.layer].exp()[:, None, None]
        similarity = cosines(without_positions(self._backbone, seen), keys)
        chosen = nearest(similarity, tensors["seen"], self.config.nearest, None)
        slots = keys.shape[2]
        own = _logits(seen)
        added = (factor * similarity - own[..., :slots]).masked_fill(~chosen, -torch.inf)
        if not self.config.local:
            return added
        local = cosines(seen.queries, seen.keys[:, :, slots:])
        return torch.cat([added, factor * local - own[..., slots:]], -1)


def _keys(tensors: Mapping[str, Tensor], seen: LayerActivations) -> Tensor:
    """Return the memory's keys (B, Hkv, M, Dh) of the layer, as at position 0."""
    return tensors["keys"][:, :, seen.layer].transpose(1, 2)


def _nothing(seen: LayerActivations, slots: int) -> Tensor:
    """Hide all slots from all queries: (B, H, T, M)."""
    return seen.queries.new_full((*seen.queries.shape[:3], slots), -torch.inf)


def _logits(seen: LayerActivations) -> Tensor:
    """Return the attention logits (B, H, T, S) of the model's own."""
    groups = seen.queries.shape[1] // seen.keys.shape[1]
    logits = seen.queries @ seen.keys.repeat_interleave(groups, 1).mT * seen.scale
    return logits if seen.cap is None else seen.cap * (logits / seen.cap).tanh()
