"""The in-context autoencoder, ICAE (Ge et al. 2023, arXiv 2307.06945)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memwrite.modules.memory_tokens import learned
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_compress.autoencoding import autoencoding
from memwrite_compress.config import at_least
from memwrite_compress.prefixes import PrefixCompressor, PrefixConfig
from memwrite_compress.tokens import even_segments


@dataclass(frozen=True)
class IcaeConfig(PrefixConfig):
    """Configures ICAE.

    Attributes:
        segment: tokens per segment at most; a context is cut into segments of the same length.
        rank: of the LoRA of the encoder.
        autoencoding_weight: in the training loss, of how likely the memory makes its context; 0 for none.
    """

    rank: int = 16
    autoencoding_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "autoencoding_weight")


class IcaeWriter(PrefixCompressor):
    """Encodes each segment by itself with a LoRA; the decoder is the model without it.

    A memory ends with a learned vector that asks the decoder to answer (the authors' [FT]); another in its place asks for
    the context (their [AE]).
    """

    recurrent = False
    endings = 1

    def __init__(self, config: IcaeConfig, backbone: Backbone) -> None:
        self._weight = config.autoencoding_weight
        super().__init__(config, backbone)
        width, dtype = backbone.info.hidden_size, backbone.info.state_dtype
        self.answer = learned(1, width, config.init_std, dtype)
        self.repeat = learned(1, width, config.init_std, dtype) if self._weight else None

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Encode the context segment by segment.

        Returns:
            The new state. Losses: "autoencoding" (B,), in training mode where a weight is set.
        """
        written = super().write(state, context)
        if self.repeat is None or not self.training:
            return written
        memory, mask = self._vectors(written.state)
        lengths = mask.sum(1)
        past = self._backbone.forward(
            memory.to(self._backbone.info.dtype), lengths=lengths, use_cache=True
        ).key_values
        assert past is not None
        loss = autoencoding(self._backbone, past, self.repeat[0], context)
        return replace(written, losses={"autoencoding": self._weight * loss})

    def _segments(self, context: PackedTokens) -> Iterator[PackedTokens]:
        return even_segments(context, self.config.segment)

    def _vectors(self, state: MemoryState) -> tuple[Tensor, Tensor]:
        slots = state["memory"].shape[1] - 1
        # The last real one is what asks for an answer.
        mask = state["mask"][:, 1:]
        return state["memory"][:, :slots] * mask[..., None], mask

    def _state(self, memory: Tensor, mask: Tensor) -> MemoryState:
        rows, slots, width = memory.shape
        count = mask.sum(1, keepdim=True)
        place = torch.arange(slots + 1, device=mask.device)
        ending = ((place == count) & (count > 0))[..., None]
        wider = torch.cat([memory, memory.new_zeros(rows, 1, width)], 1)
        tensors = {
            "memory": torch.where(ending, self.answer.to(memory.dtype), wider),
            "mask": (place <= count) & (count > 0),
        }
        return MemoryState(self._spec(slots), tensors)
