"""The pool's writer: each layer keeps what it gives at the last tokens, and forgets as much at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memwrite.errors import ConfigError
from memwrite.protocols import Backbone, ProjectionDeltas, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_pool.config import PoolConfig
from memwrite_pool.layers import key_values
from memwrite_pool.pool import POOL, draws, picked, remembered, renewed


class PoolWriter(nn.Module):
    """Reads the context behind the last n memory tokens of each layer, and keeps what each layer gives at its last n.

    MemoryLLM (Wang et al. 2024, arXiv 2402.04624). What is forgotten follows from the state's seed and its number of
    writes, so that the same text leaves the same memory.

    Args:
        config: see `PoolConfig`.
        backbone: the model that writes; never changed.

    Raises:
        ConfigError: the model has recurrent layers, or no more positions than the pool has slots.
    """

    def __init__(self, config: PoolConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        if backbone.recurrent or not info.layers:
            raise ConfigError(
                f"'{info.architecture}' has recurrent layers, before which no memory tokens can stand: take the writer "
                f"native-state"
            )
        if config.slots + config.long >= info.positions:
            raise ConfigError(
                f"writer.params.slots={config.slots} and long={config.long} leave a question none of the model's "
                f"{info.positions} positions"
            )
        self.config = config
        self.reserved_positions = config.tokens
        self._backbone = backbone
        shapes: dict[str, tuple[int, ...]] = {
            "hidden": (info.layers, config.slots, info.hidden_size),
            "writes": (),
            "seed": (),
        }
        if config.long:
            shapes |= {
                "long": (info.layers, config.long, info.hidden_size),
                "made": (info.layers, config.slots),
                "long_made": (info.layers, config.long),
            }
        self.spec = StateSpec(POOL.name, shapes, tuple(range(info.layers)), info.state_dtype)
        #: Added to the last n tokens as they enter each layer.
        self.position = nn.Parameter(torch.zeros(info.hidden_size, dtype=info.state_dtype))

    def init(self, batch_size: int, /) -> MemoryState:
        """Return empty pools."""
        state = self.spec.zeros(batch_size, self.position.device)
        seed = torch.full_like(state["seed"], self.config.seed)
        return MemoryState(self.spec, {**state.tensors, "seed": seed})

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Write each segment of the context, one after the other."""
        width = self.config.segment or max(context.ids.shape[1], 1)
        for start in range(0, context.ids.shape[1], width):
            state = self._segment(state, context.columns(start, start + width))
        return WriteOutput(state)

    def _segment(self, state: MemoryState, context: PackedTokens) -> MemoryState:
        pool, begun, tokens = state["hidden"], state["writes"] > 0, self.config.tokens
        past = None
        if bool(begun.any()):
            past = key_values(self._backbone, pool[:, :, -tokens:], begun)
        count = context.lengths.clamp(max=tokens)
        first = (context.lengths - count)[:, None]
        length = context.ids.shape[1]
        at = (first + torch.arange(tokens, device=first.device)).clamp(max=length - 1)
        place = torch.arange(length, device=first.device)
        last = (place >= first) & context.mask
        layers = {
            n: _Making(self.position * last[..., None], at) for n in range(len(state.spec.layers))
        }
        self._backbone.forward(
            self._backbone.embed(context.ids),
            past=past,
            lengths=context.lengths,
            corrections=layers,
        )
        new = torch.stack([layer.made for layer in layers.values()], 1).to(pool.dtype)
        draw = draws(
            state["seed"],
            state["writes"],
            pool.shape[1] if self.config.per_layer else 1,
            pool.shape[2],
        )
        writes, index = state["writes"] + (count > 0), renewed(count, ~begun, draw)
        tensors = {"hidden": picked(pool, new, index), "writes": writes, "seed": state["seed"]}
        if self.config.long:
            made = writes[:, None, None].expand(*new.shape[:3])
            tensors["made"] = picked(state["made"], made, index)
            index = remembered(count, ~begun, draw, self.config.long)
            tensors["long"] = picked(state["long"], pool, index)
            tensors["long_made"] = picked(state["long_made"], state["made"], index)
        return MemoryState(state.spec, tensors)


class _Making:
    """Marks a layer's last tokens as they enter, and keeps what they are when they leave; a `ResidualAdapter`."""

    def __init__(self, added: Tensor, at: Tensor) -> None:
        self._added, self._at = added, at
        self.made = added

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {}

    def entering(self, hidden: Tensor) -> Tensor:
        return hidden + self._added

    def leaving(self, hidden: Tensor) -> Tensor:
        self.made = hidden.gather(1, self._at[..., None].expand(-1, -1, hidden.shape[-1]))
        return hidden

    def rows(self, index: Tensor) -> _Making:
        """Return the adapter of these rows."""
        index = index.to(self._at.device)
        return _Making(self._added[index], self._at[index])
