"""The pool's reader: every layer sees its own memory tokens before the text, and each query some of the long-term ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from memwrite.errors import InputError
from memwrite.modules.nearest import cosines, nearest, without_positions
from memwrite.modules.positions import moved
from memwrite.protocols import Backbone, Conditioning, KeyValues, LayerActivations, SlotRule
from memwrite.state import MemoryState, StateSpec
from memwrite_pool.config import PoolReaderConfig
from memwrite_pool.layers import key_values
from memwrite_pool.pool import POOL


class PoolReader(nn.Module):
    """Puts the whole pool of each layer before the text, at the positions from 0 on.

    Args:
        config: see `PoolReaderConfig`.
        backbone: the model that reads; its layers make keys and values of the pool, and nothing else is run.
        spec: of the states.
    """

    accepts = frozenset({POOL.name})

    def __init__(self, config: PoolReaderConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        self.config = config
        self._backbone = backbone

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Let each layer make keys and values of its memory tokens.

        Raises:
            InputError: the pool is of another width or of other layers than the model.
        """
        info, pool = self._backbone.info, state["hidden"]
        if (pool.shape[1], pool.shape[3]) != (info.layers, info.hidden_size):
            raise InputError(
                f"this memory is of {pool.shape[1]} layers of width {pool.shape[3]}, but the model has {info.layers} of "
                f"{info.hidden_size}: it was written for another model"
            )
        begun = state["writes"] > 0
        if "long" not in state.tensors:
            return Conditioning(key_values=key_values(self._backbone, pool, begun))
        return Conditioning(key_values=self._with_long(state, begun))

    def _with_long(self, state: MemoryState, begun: Tensor) -> KeyValues:
        """Put the long-term memory before the pool, oldest first, and let each query look up its nearest of it."""
        made, long = state["long_made"], state["long"]
        order = made.argsort(dim=-1, stable=True)
        long = long.gather(2, order[..., None].expand_as(long))
        whole = key_values(self._backbone, torch.cat([long, state["hidden"]], 2), begun)
        # Every layer has forgotten as many slots.
        held = made.sort(-1).values[:, 0] > 0
        mask = torch.cat([held, whole.mask[:, held.shape[1] :]], 1)
        places = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        free = moved(self._backbone, whole.keys, -places).movedim(3, 1)
        far = torch.cat([held, torch.zeros_like(whole.mask[:, held.shape[1] :])], 1)
        return replace(whole, mask=mask, rule=SlotRule({"keys": free, "far": far}, self._hidden))

    def _hidden(self, tensors: Mapping[str, Tensor], seen: LayerActivations) -> Tensor:
        keys, far = tensors["keys"][:, :, seen.layer].transpose(1, 2), tensors["far"]
        similarity = cosines(without_positions(self._backbone, seen), keys)
        chosen = nearest(similarity, far, self.config.retrieved, None)
        hidden = far[:, None, None] & ~chosen
        return torch.zeros_like(similarity).masked_fill(hidden, -torch.inf)
