"""Distillation: a memory is to be to its model what the context in sight is."""

from __future__ import annotations

import torch

from memwrite.inference.generate import evaluating
from memwrite.inference.predict import predict
from memwrite.inference.prefill_cache import PrefillOutput
from memwrite.memory import Memory
from memwrite.protocols import Conditioning, Predictions
from memwrite.tasks.base import Batch
from memwrite.training import lora


@torch.no_grad()
def teacher(memory: Memory, batch: Batch) -> Predictions:
    """Return what is predicted of the queries behind their contexts in sight, without any memory.

    The teacher is the model as training found it: in evaluation mode, without the corrections that are trained. Each
    context is read once for all of its queries.

    Raises:
        PositionsExceeded: a context and its query are longer than the model's positions.
    """
    backbone = memory.backbone
    device = backbone.info.device
    context, queries = batch.context.to(device).packed(), batch.queries.to(device)
    with evaluating(memory.model), lora.uncorrected(memory.model):
        run = backbone.forward(backbone.embed(context.ids), lengths=context.lengths, use_cache=True)
        first = None
        if bool((context.lengths > 0).all()):
            rows = torch.arange(len(context.ids), device=device)
            first = backbone.logits(run.hidden[rows, context.lengths - 1])
        visible = Conditioning(key_values=run.key_values)
        done = PrefillOutput(run.key_values, first)
        return predict(backbone, visible, queries, batch.labels, done)
