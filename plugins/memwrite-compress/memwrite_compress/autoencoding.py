"""Autoencoding: how likely a memory makes the context that it was made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.protocols import Backbone, KeyValues
from memwrite.state import PackedTokens


def autoencoding(
    backbone: Backbone, past: KeyValues, start: Tensor, context: PackedTokens
) -> Tensor:
    """Return the negative log-likelihood (B,) of a token of the context behind [memory; start], on average.

    Args:
        backbone: the model that reads.
        past: the memory.
        start: (D,), an embedding that asks for the context.
        context: (B, T).
    """
    embeddings = backbone.embed(context.ids)
    first = start.to(embeddings.dtype).expand(len(embeddings), 1, -1)
    inputs = torch.cat([first, embeddings[:, :-1]], 1)
    hidden = backbone.forward(inputs, past=past, lengths=context.lengths).hidden
    losses = F.cross_entropy(backbone.logits(hidden).transpose(1, 2), context.ids, reduction="none")
    return (losses * context.mask).sum(1) / context.lengths.clamp(min=1)
