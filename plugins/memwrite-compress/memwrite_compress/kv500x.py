"""500xCompressor (Li et al. 2024, arXiv 2408.03094)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_compress.autoencoding import autoencoding
from memwrite_compress.config import CompressionConfig, at_least
from memwrite_compress.key_values import KeyValueCompressor, key_values


@dataclass(frozen=True)
class Compressor500xConfig(CompressionConfig):
    """Configures 500xCompressor.

    Attributes:
        rank: of the LoRA of the model that compresses, which acts on the context, too.
        autoencoding_weight: in the training loss, of how likely the memory makes its context; 0 for none.
    """

    rank: int = 16
    autoencoding_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "autoencoding_weight")


class Compressor500xWriter(KeyValueCompressor):
    """Keeps the key-values of m tokens behind the context, made by the model with a LoRA for the model without it.

    The authors pretrain it to repeat the context behind [memory; bos]. Their decoder begins at position m though the memory
    stands behind the context; here it begins right behind the memory.
    """

    def __init__(self, config: Compressor500xConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self._weight = config.autoencoding_weight

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Compress the context segment by segment.

        Returns:
            The new state. Losses: "autoencoding" (B,), in training mode where a weight is set.
        """
        written = super().write(state, context)
        if not self._weight or not self.training:
            return written
        start = torch.tensor([[self._backbone.info.bos_id]], device=context.ids.device)
        past = key_values(self._with_room(written.state, context.lengths))
        loss = autoencoding(self._backbone, past, self._backbone.embed(start)[0, 0], context)
        return replace(written, losses={"autoencoding": self._weight * loss})
