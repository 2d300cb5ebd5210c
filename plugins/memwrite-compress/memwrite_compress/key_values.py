"""What the compressors of key-values share: a segment is read with tokens behind it, whose keys and values are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from memwrite.errors import ConfigError
from memwrite.inference.positions import rewind
from memwrite.modules.memory_tokens import learned
from memwrite.protocols import Backbone, KeyValues, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec, TensorSpec
from memwrite_compress.config import CompressionConfig
from memwrite_compress.tokens import adapters, behind, lora_of, segments, slots_of


class KeyValueCompressor(nn.Module):
    """Reads each segment behind the memory, [memory; segment; m tokens], and keeps the tokens' keys and values.

    Here they take the place of the memory; subclasses say otherwise. Where the model's positions run out, the memory is
    moved to the first ones (on models whose positions are not rotations only the places are used again).

    Args:
        config: see `CompressionConfig`.
        backbone: the model that compresses; never changed.

    Raises:
        ConfigError: the model has layers that are not attention, and would lose what they have read.
    """

    #: Whether the LoRA acts on the compression tokens alone.
    conditional = False
    #: Whether compression tokens take positions, so that the text behind them begins after them.
    counted = True
    #: Whether a segment sees the memory of those before.
    recurrent = True
    #: What states have beside their slots.
    latent: ClassVar[Mapping[str, TensorSpec]] = {}

    def __init__(self, config: CompressionConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        if backbone.recurrent or not info.layers:
            raise ConfigError(
                f"recurrent layers of '{info.architecture}' read a context, too, and have no keys and values to keep: "
                f"compress it into a prefix (autocompressor, icae)"
            )
        self.config = config
        self._backbone = backbone
        self.tokens = learned(config.slots, info.hidden_size, config.init_std, info.state_dtype)
        self.lora = lora_of(config, backbone)
        self.spec = self._spec(self.capacity, self.bounded)
        #: A state whose slots stand at the first positions, and the tokens of one segment.
        self.reserved_positions = self.capacity + config.slots

    @property
    def capacity(self) -> int:
        """The number of slots of a state."""
        return self.config.slots

    @property
    def bounded(self) -> bool:
        """Whether states have so many slots whatever is written."""
        return True

    def _spec(self, slots: int, bounded: bool) -> StateSpec:
        info = self._backbone.info
        each = (info.layers, info.kv_heads, slots, info.head_dim)
        return StateSpec(
            "keyvalue",
            {
                "keys": each,
                "values": each,
                "mask": (slots,),
                "next_position": (),
                "latent.position": TensorSpec((slots,), torch.int64, per_layer=False),
                **self.latent,
            },
            tuple(range(info.layers)),
            info.state_dtype,
            bounded,
        )

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states in which every slot is empty."""
        return self.spec.zeros(batch_size, self.tokens.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Compress the context segment by segment."""
        for segment in segments(context, self.config.segment):
            state = self._with_room(state, segment.lengths + self.config.slots)
            new = self._compressed(state, segment)
            state = self._joined(state, new, segment.mask.any(1))
        # What is read behind a memory needs positions, too.
        enough = self._backbone.info.positions * 3 // 4
        return WriteOutput(self._rewound(state, state["next_position"] > enough))

    def _compressed(self, state: MemoryState, segment: PackedTokens) -> dict[str, Tensor]:
        """Return the tensors of a state of the segment's tokens alone; of no account in rows without a segment."""
        past = key_values(state)
        if not self.recurrent or not bool(past.mask.any()):
            past = _without_slots(past)
        embeddings = self._backbone.embed(segment.ids)
        inputs, lengths, at = behind([(embeddings, segment.mask)], self.tokens)
        run = self._backbone.forward(
            inputs,
            past=past,
            corrections=adapters(self.lora, at if self.conditional else None),
            lengths=lengths,
            use_cache=True,
        ).key_values
        assert run is not None
        places = past.mask.shape[1] + at
        ends = state["next_position"] + segment.lengths
        return {
            "keys": slots_of(run.keys, places).to(self.spec.dtype),
            "values": slots_of(run.values, places).to(self.spec.dtype),
            "mask": torch.ones_like(at, dtype=torch.bool),
            "next_position": ends + self.config.slots if self.counted else ends,
            "latent.position": ends[:, None] + torch.arange(at.shape[1], device=at.device),
        }

    def _joined(self, state: MemoryState, new: dict[str, Tensor], read: Tensor) -> MemoryState:
        """Return the memory after a segment, in the rows `read` (B,) that had one; the others stay."""
        return MemoryState(self.spec, new).where(read, state)

    def _with_room(self, state: MemoryState, length: Tensor) -> MemoryState:
        """Return the state, moved to the first positions in rows that have fewer than `length` (B,) left."""
        return self._rewound(state, state["next_position"] + length > self._backbone.info.positions)

    def _rewound(self, state: MemoryState, rows: Tensor) -> MemoryState:
        """Give the slots of the rows (B,) bool the positions from 0 on."""
        if not bool(rows.any()):
            return state
        past, places = key_values(state), state["latent.position"]
        try:
            moved = rewind(self._backbone, past, places)
        except ConfigError:  # no rotations: the places behind the memory become free
            moved = replace(past, next_position=past.mask.sum(1))
        own = (past.mask.cumsum(1) - 1).clamp(min=0)
        tensors = {
            **state.tensors,
            "keys": moved.keys,
            "next_position": moved.next_position,
            "latent.position": own,
        }
        return replace(state, tensors=tensors).where(rows, state)


def key_values(state: MemoryState) -> KeyValues:
    """Return what a state holds as the model takes it."""
    return KeyValues(state["keys"], state["values"], state["mask"], state["next_position"])


def _without_slots(past: KeyValues) -> KeyValues:
    """Return a past of no slots, with the same next position."""
    return replace(
        past,
        keys=past.keys[..., :0, :],
        values=past.values[..., :0, :],
        mask=past.mask[:, :0],
    )
