"""The writer: one run of the model over the context, from the state that it kept."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from memwrite.inference.positions import rewind
from memwrite.protocols import Backbone, KeyValues, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_recurrent.config import NativeStateConfig
from memwrite_recurrent.kind import past_of, spec_of, tensors_of


class NativeStateWriter(nn.Module):
    """Keeps what the model's own layers hold at the end of the context; it has no weights.

    With `attention: keep`, a context written in pieces leaves the state that it leaves as a whole, and a read behind it
    is that of the whole text. With "last" and "none", the attention layers see less of what was written in earlier pieces
    than they would have in one, so pieces matter.
    """

    reserved_positions = 0

    def __init__(self, config: NativeStateConfig, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = backbone
        self._attention, self._slots = config.attention, config.slots
        bounded = config.attention != "keep" or not backbone.info.layers
        self.spec = spec_of(backbone, config.slots if backbone.info.layers else 0, bounded)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states that have read nothing: zeros, as the model itself begins with."""
        return self.spec.zeros(batch_size, self._backbone.info.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Run the context behind the state.

        Raises:
            PositionsExceeded: together they are longer than the model's positions, and all keys are kept.
        """
        backbone = self._backbone
        past = past_of(state, backbone)
        kept = backbone.forward(
            backbone.embed(context.ids), past=past, lengths=context.lengths, use_cache=True
        ).key_values
        assert kept is not None
        if self.spec.bounded and kept.keys.shape[1]:
            kept = self._limited(kept)
        tensors = tensors_of(kept)
        tensors = {name: tensors[name].to(self.spec.dtype_of(name)) for name in self.spec.tensors}
        if self.spec.bounded:
            return WriteOutput(MemoryState(self.spec, tensors))
        spec = spec_of(backbone, kept.mask.shape[1], bounded=False)
        return WriteOutput(MemoryState(spec, tensors))

    def _limited(self, kept: KeyValues) -> KeyValues:
        """Return the last real slots of every row, at the first positions; slots that stay empty hold zeros."""
        real = kept.mask
        positions = real.cumsum(1) - 1 + (kept.next_position - real.sum(1))[:, None]
        order = real.long().argsort(dim=1, stable=True)[:, real.shape[1] - self._slots :]
        last = real.gather(1, order)
        index = order[:, None, None, :, None]
        keys, values = (
            t.gather(3, index.expand(*t.shape[:3], -1, t.shape[-1])) * last[:, None, None, :, None]
            for t in (kept.keys, kept.values)
        )
        limited = replace(kept, keys=keys, values=values, mask=last)
        return rewind(self._backbone, limited, positions.gather(1, order))
