"""What the compressors into vectors share: a segment is read with tokens behind it, whose last hidden states are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memwrite.modules.memory_tokens import learned
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_compress.config import CompressionConfig, at_least
from memwrite_compress.tokens import gathered, last_hidden, lora_of, newest, segments


@dataclass(frozen=True)
class PrefixConfig(CompressionConfig):
    """Configures what compressors into vectors share.

    Attributes:
        keep: segments that a state has room for, the last ones; with None it keeps all, and grows.
    """

    keep: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "keep")


class PrefixCompressor(nn.Module):
    """Keeps the last hidden states of m tokens behind each segment, side by side.

    Args:
        config: see `PrefixConfig`.
        backbone: the model that compresses; never changed.
    """

    #: Whether a segment is read behind the vectors of those before.
    recurrent = True
    #: Vectors that end the memory when it is read.
    endings = 0

    def __init__(self, config: PrefixConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        self.config = config
        self._backbone = backbone
        self.tokens = learned(config.slots, info.hidden_size, config.init_std, info.state_dtype)
        self.lora = lora_of(config, backbone)
        self._room = None if config.keep is None else config.keep * config.slots
        self.spec = self._spec(self._room or 0)
        self.reserved_positions = config.slots + (self._room or 0) * self.recurrent

    def _spec(self, slots: int) -> StateSpec:
        width, dtype = self._backbone.info.hidden_size, self._backbone.info.state_dtype
        size = slots + self.endings
        shapes = {"memory": (size, width), "mask": (size,)}
        return StateSpec("prefix", shapes, dtype=dtype, bounded=self._room is not None)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states without any vector."""
        return self.spec.zeros(batch_size, self.tokens.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Compress the context segment by segment."""
        memory, mask = self._vectors(state)
        for segment in self._segments(context):
            before = [(memory, mask)] if self.recurrent else []
            new = self._compressed([*before, (self._backbone.embed(segment.ids), segment.mask)])
            read = segment.mask.any(1, keepdim=True).expand(-1, self.config.slots)
            order, kept = newest(torch.cat([mask, read], 1), self._room)
            both = torch.cat([memory, new], 1)
            memory, mask = gathered(both, order) * kept[..., None], kept
        return WriteOutput(self._state(memory, mask))

    def _segments(self, context: PackedTokens) -> Iterator[PackedTokens]:
        return segments(context, self.config.segment)

    def _compressed(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the last hidden states (B, m, D) of the tokens behind the parts."""
        hidden = last_hidden(self._backbone, self.lora, self.tokens, parts)
        return hidden.to(self.spec.dtype)

    def _vectors(self, state: MemoryState) -> tuple[Tensor, Tensor]:
        """Return a state's vectors (B, n, D), and which are real, (B, n)."""
        return state["memory"], state["mask"]

    def _state(self, memory: Tensor, mask: Tensor) -> MemoryState:
        """Return a state of vectors (B, n, D), of which some (B, n) are real."""
        return MemoryState(self._spec(memory.shape[1]), {"memory": memory, "mask": mask})
