"""The writer: the model reads the context, and all of its keys and values are kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from memwrite.errors import ConfigError
from memwrite.modules.positions import moved
from memwrite.protocols import Backbone, KeyValues, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite.utils.padding import real_first
from memwrite_neighbours.config import NeighboursConfig
from memwrite_neighbours.kind import spec_of


class NeighboursWriter(nn.Module):
    """Keeps the keys and values of the whole context, for queries to look up the nearest of them.

    The state grows with the context, so `spec.bounded` is False: L · Hkv · T · 2 Dh numbers for T tokens.

    Args:
        config: see `NeighboursConfig`.
        backbone: the model that reads; never changed.

    Raises:
        ConfigError: the model has recurrent layers, whose states are no list of keys.
    """

    reserved_positions = 0

    def __init__(self, config: NeighboursConfig, backbone: Backbone) -> None:
        super().__init__()
        if backbone.recurrent:
            raise ConfigError(
                f"'{backbone.info.architecture}' has recurrent layers, whose states hold no neighbours to look up: take "
                f"the writer native-state"
            )
        self.config = config
        self._backbone = backbone
        special = {backbone.info.bos_id, backbone.info.eos_id, *backbone.info.end_ids}
        self._special = tuple(sorted(special))
        self.spec = spec_of(backbone.info, 0)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return a state of no slots."""
        return self.spec.zeros(batch_size, self._backbone.info.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Read the context, behind what is kept or in segments of its own, and keep its keys and values too.

        Raises:
            InputError: what is kept and the context are longer than the model's positions, and there are no segments.
        """
        if not context.mask.any():
            return WriteOutput(state)
        parts = [state.tensors]
        for keys, values, tokens in self._read(state, context):
            special = torch.isin(tokens.ids, tokens.ids.new_tensor(self._special)) & tokens.mask
            parts.append({"keys": keys, "values": values, "mask": tokens.mask, "special": special})
        axes = {"keys": 3, "values": 3, "mask": 1, "special": 1}
        joined = {n: torch.cat([part[n] for part in parts], axis) for n, axis in axes.items()}
        order = real_first(joined["mask"])
        spec = spec_of(self._backbone.info, order.shape[1])
        tensors = {n: _slots(t, order).to(spec.dtype_of(n)) for n, t in joined.items()}
        empty = ~tensors["mask"][:, None, None, :, None]
        tensors |= {name: tensors[name].masked_fill(empty, 0) for name in ("keys", "values")}
        return WriteOutput(MemoryState(spec, tensors))

    def _read(
        self, state: MemoryState, context: PackedTokens
    ) -> Iterator[tuple[Tensor, Tensor, PackedTokens]]:
        """Yield keys as at position 0 (B, L, Hkv, T, Dh), values and tokens (B, T) of each part of the context."""
        length, overlap = context.ids.shape[1], self.config.overlap
        past = None if self.config.segment else _past(self._backbone, state)
        for start in range(0, length, self.config.segment or length):
            before = min(start, overlap)
            read = context.columns(start - before, start + (self.config.segment or length))
            cache = self._backbone.forward(
                self._backbone.embed(read.ids), past=past, lengths=read.lengths, use_cache=True
            ).key_values
            assert cache is not None
            new = read.columns(before, read.ids.shape[1])
            old = cache.keys.shape[3] - new.ids.shape[1]
            places = torch.arange(before, read.ids.shape[1], device=new.ids.device)
            places = places + (0 if past is None else past.next_position[:, None])
            keys = moved(self._backbone, cache.keys[:, :, :, old:], -places.expand(new.ids.shape))
            yield keys, cache.values[:, :, :, old:], new


def _past(backbone: Backbone, state: MemoryState) -> KeyValues | None:
    """Return what is kept as a past that begins at position 0; None where nothing is."""
    mask = state["mask"]
    if not mask.shape[1]:
        return None
    places = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    return KeyValues(moved(backbone, state["keys"], places), state["values"], mask, mask.sum(1))


def _slots(tensor: Tensor, order: Tensor) -> Tensor:
    """Return the slots that `order` (B, M) names of (B, S) or (B, L, Hkv, S, Dh)."""
    if tensor.ndim == 2:
        return tensor.gather(1, order)
    index = order[:, None, None, :, None].expand(*tensor.shape[:3], -1, tensor.shape[-1])
    return tensor.gather(3, index)
