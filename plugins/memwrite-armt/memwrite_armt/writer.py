"""ARMT's writer: memory tokens behind each segment gather what every layer is to remember of it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from memwrite.modules.memory_tokens import learned
from memwrite.protocols import Backbone, ProjectionDeltas, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_armt.config import AssociativeConfig
from memwrite_armt.memory import associated, features, updated


class AssociativeLayer(nn.Module):
    """The maps of one layer: queries, keys, values and gates from hidden states.

    Values start at 0, so that a memory changes nothing until it is trained, as the authors have it.
    """

    def __init__(self, config: AssociativeConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, config.rank, bias=False, dtype=dtype)
        self.key = nn.Linear(width, config.rank, bias=False, dtype=dtype)
        self.value = nn.Linear(width, width, bias=False, dtype=dtype)
        self.gate = nn.Linear(width, 1, dtype=dtype)
        nn.init.zeros_(self.value.weight)

    def read(self, memory: Tensor, z: Tensor, hidden: Tensor) -> Tensor:
        """Return what the memory adds to hidden states (B, T, D)."""
        return associated(memory, z, features(self.query(hidden), self.config.order))[0]

    def write(self, memory: Tensor, z: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return S and z after the hidden states (B, M, D) of memory tokens have been written."""
        keys = features(self.key(hidden), self.config.order)
        gates = self.gate(hidden).sigmoid()[..., 0]
        return updated(memory, z, keys, self.value(hidden), gates, self.config.correction)


class AssociativeWriter(nn.Module):
    """Runs [segment; memory tokens] segment by segment; each layer writes what it gives at the memory tokens.

    Every layer reads what earlier segments have left in its memory. Rodkin et al. 2024 (arXiv 2407.04841); the memory
    tokens stand at the positions behind the segment.

    Args:
        config: see `AssociativeConfig`.
        backbone: the model that writes; never changed.
    """

    def __init__(self, config: AssociativeConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        width, dtype = info.hidden_size, info.state_dtype
        self.config = config
        self.reserved_positions = config.slots
        self._backbone = backbone
        self.slots = learned(config.slots, width, config.init_std, dtype)
        numbers = tuple(range(info.layers))
        self.layers = nn.ModuleDict(
            {str(n): AssociativeLayer(config, width, dtype) for n in numbers}
        )
        keys = 2 * config.order * config.rank
        shapes = {"S": (info.layers, width, keys), "z": (info.layers, keys)}
        self.spec = StateSpec("associative", shapes, numbers, dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return memories of nothing: zeros."""
        return self.spec.zeros(batch_size, self.slots.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Write each segment of the context, one after the other."""
        width = self.config.segment or max(context.ids.shape[1], 1)
        for start in range(0, context.ids.shape[1], width):
            state = self._segment(state, context.columns(start, start + width))
        return WriteOutput(state)

    def _segment(self, state: MemoryState, context: PackedTokens) -> MemoryState:
        embeddings = self._backbone.embed(context.ids)
        rows, length, width = embeddings.shape
        slots = self.slots.to(embeddings.dtype).expand(rows, -1, -1)
        # Each row's memory tokens stand right behind its own last token, and padding behind them.
        place = torch.arange(length + self.config.slots, device=embeddings.device).expand(rows, -1)
        ends = context.lengths[:, None]
        source = torch.where(place < ends, place, place + length - ends)
        source = source.clamp(max=length + self.config.slots - 1)[..., None].expand(-1, -1, width)
        inputs = torch.cat([embeddings, slots], 1).gather(1, source)
        at = ends + torch.arange(self.config.slots, device=ends.device)
        layers = {
            number: _Writing(self._layer(number), state, number, at) for number in state.spec.layers
        }
        self._backbone.forward(inputs, corrections=layers)
        new = {
            name: torch.stack([layers[number].tensors[name] for number in state.spec.layers], 1)
            for name in ("S", "z")
        }
        return state.where(~context.mask.any(1), MemoryState(state.spec, new))

    def _layer(self, number: int) -> AssociativeLayer:
        return cast(AssociativeLayer, self.layers[str(number)])


class _Writing:
    """One layer during one segment: reads what was there before, and keeps what is to be; a `ResidualAdapter`."""

    def __init__(
        self, layer: AssociativeLayer, state: MemoryState, number: int, at: Tensor
    ) -> None:
        self._layer, self._state, self._number, self._at = layer, state, number, at
        before = state.layer(number)
        self._before = before["S"], before["z"]
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {}

    def entering(self, hidden: Tensor) -> Tensor:
        wide = hidden.to(self._before[0].dtype)
        return wide + self._layer.read(*self._before, wide)

    def leaving(self, hidden: Tensor) -> Tensor:
        index = self._at[..., None].expand(-1, -1, hidden.shape[-1])
        tokens = hidden.gather(1, index).to(self._before[0].dtype)
        self.tensors = dict(zip(("S", "z"), self._layer.write(*self._before, tokens), strict=True))
        return hidden

    def rows(self, index: Tensor) -> _Writing:
        """Return the adapter of these rows."""
        at = self._at[index.to(self._at.device)]
        return _Writing(self._layer, self._state.rows(index), self._number, at)
