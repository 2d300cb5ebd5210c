"""AutoCompressor (Chevalier et al. 2023, arXiv 2305.14788)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from memwrite.protocols import Backbone
from memwrite_compress.prefixes import PrefixCompressor, PrefixConfig


@dataclass(frozen=True)
class AutoCompressorConfig(PrefixConfig):
    """Configures AutoCompressor.

    Attributes:
        keep: segments whose summaries a state has room for, the last ones; with None it keeps all, and grows; with 1 it is
            the authors' model without `accumulate_summary`.
        init_std: standard deviation of what is added to the embedding of the end token to make summary tokens.
    """

    init_std: float = 0.0


class AutoCompressorWriter(PrefixCompressor):
    """Reads [summaries of earlier segments; segment; m summary tokens], and keeps the last hidden states of these.

    Summary tokens begin as the embedding of the end token. The authors train the whole model (`backbone.trainable`) on the
    segments that follow.
    """

    def __init__(self, config: AutoCompressorConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        end = torch.tensor([[backbone.info.eos_id]], device=backbone.info.device)
        with torch.no_grad():
            self.tokens.add_(backbone.embed(end)[0].to(self.tokens))
