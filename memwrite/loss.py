"""What training feeds and what it gets back: the loss of queries' labelled tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.protocols import ReadOutput
from memwrite.state import Tokens


@dataclass(frozen=True)
class Batch:
    """What training feeds.

    Attributes:
        context: (B, T), written once per row.
        queries: (B, T) or (B, Q, T): the rows' queries with their answers behind them.
        labels: like queries.ids: the token id to be predicted AT that place from all before it; -100 where
            nothing is asked.
    """

    context: Tokens
    queries: Tokens
    labels: Tensor


@dataclass(frozen=True)
class MemoryOutput:
    """What training gets back.

    Attributes:
        loss: the sum of `losses`.
        logits: as in `ReadOutput`.
        losses: name -> mean, with its graph: "target" over labelled tokens, those of the writer over rows.
        exact: (B,) or (B, Q) bool, whether every labelled token of a query was the model's first choice; it
            counts only where
        asked: of the same shape, that a query has a labelled token at all.
    """

    loss: Tensor
    logits: Tensor
    losses: Mapping[str, Tensor]
    exact: Tensor
    asked: Tensor


def target_loss(
    output: ReadOutput, queries: Tokens, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy of the labelled tokens, each predicted from the real token before it.

    Args:
        output: of reading `queries`.
        queries: (B, T) or (B, Q, T).
        labels: as in `Batch`.

    Returns:
        The loss, and `exact` and `asked` of `MemoryOutput`.
    """
    predicted, labels = aligned(output, queries, labels)
    loss = F.cross_entropy(predicted.flatten(0, -2), labels.flatten(), ignore_index=-100)
    ignored = labels == -100
    exact = ((predicted.argmax(-1) == labels) | ignored).all(-1)
    return loss, exact, ~ignored.all(-1)


def aligned(output: ReadOutput, queries: Tokens, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (..., T', V) and the labels (..., T') that they are to predict; arguments as in `target_loss`.

    Without `output.first` nothing predicts a query's first token, and its label is dropped.
    """
    packed, order = queries.pack()
    labels = labels.to(order.device).gather(-1, order).masked_fill(~packed.mask, -100)
    logits = output.logits.gather(
        -2, order[..., None].expand(*order.shape, output.logits.shape[-1])
    )
    first = output.first
    if first is None:
        return logits[..., :-1, :], labels[..., 1:]
    first = first[:, None, :] if logits.ndim == 3 else first[:, None, None, :]
    first = first.expand(*logits.shape[:-2], 1, -1)
    return torch.cat([first, logits[..., :-1, :]], -2), labels
