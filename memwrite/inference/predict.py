"""Predictions of the tokens that somebody asks about: the vocabulary head is run at no other place."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.backbones.transformers import TransformersBackbone
from memwrite.inference.prefill_cache import PrefillOutput
from memwrite.inference.read import copies_of, hidden_states
from memwrite.protocols import IGNORED, Conditioning, Predictions
from memwrite.state import Tokens


def predict(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    query: Tokens,
    labels: Tensor,
    prefilled: PrefillOutput | None = None,
) -> Predictions:
    """Return what [memory; query] predicts of the labelled tokens; see `Memory.predict`."""
    run = hidden_states(backbone, conditioning, query, prefilled)
    width = run.order.shape[1]
    labels = labels.to(run.order.device).flatten(0, -2).gather(-1, run.order)
    wanted = (labels != IGNORED) & run.packed.mask
    following = wanted[:, 1:]
    logits = backbone.logits(run.hidden[:, : max(width - 1, 0)][following])
    rows, columns = following.nonzero(as_tuple=True)
    predictions = Predictions(logits, labels[:, 1:][following], rows, columns + 1)
    if run.first_logits is None or not width:
        return predictions
    (rows,) = wanted[:, 0].nonzero(as_tuple=True)
    first = run.first_logits[copies_of(query)[rows]]
    return Predictions(
        torch.cat([first.to(logits.dtype), logits]),
        torch.cat([labels[rows, 0], predictions.labels]),
        torch.cat([rows, predictions.queries]),
        torch.cat([torch.zeros_like(rows), predictions.columns]),
    )
