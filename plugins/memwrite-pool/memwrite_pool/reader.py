"""The pool's reader: every layer sees its own memory tokens before the text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from memwrite.errors import InputError
from memwrite.protocols import Backbone, Conditioning
from memwrite.state import MemoryState, StateSpec
from memwrite_pool.layers import key_values
from memwrite_pool.pool import POOL


@dataclass(frozen=True)
class PoolReaderConfig:
    """Nothing can be set."""


class PoolReader(nn.Module):
    """Puts the whole pool of each layer before the text, at the positions from 0 on.

    Args:
        config: nothing can be set.
        backbone: the model that reads; its layers make keys and values of the pool, and nothing else is run.
        spec: of the states.
    """

    accepts = frozenset({POOL.name})

    def __init__(self, config: PoolReaderConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
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
        return Conditioning(key_values=key_values(self._backbone, pool, state["writes"] > 0))
