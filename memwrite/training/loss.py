"""The training loss of a memory: what its queries' labelled tokens cost, plus the writer's own losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.memory import Memory
from memwrite.protocols import Predictions
from memwrite.tasks.base import Batch


@dataclass(frozen=True)
class MemoryOutput:
    """The output of a training step.

    Attributes:
        loss: the sum of `losses`.
        losses: name -> mean, with its graph: "target" over labelled tokens, those of the writer over rows.
        exact: (B,) or (B, Q) bool, whether every labelled token of a query was the model's first choice.
        labelled: of the same shape, whether the query has a labelled token; `exact` counts only where it has.
    """

    loss: Tensor
    losses: Mapping[str, Tensor]
    exact: Tensor
    labelled: Tensor


def training_loss(memory: Memory, batch: Batch, taught: Predictions | None = None) -> MemoryOutput:
    """Write the contexts, read the queries, and compare with the labels, or with a teacher.

    The loss is the mean over all labelled tokens, plus the mean of each of the writer's losses. A query's first token
    counts where the memory has a position that predicts it.

    Args:
        memory: to be trained.
        batch: its labels say which tokens count.
        taught: what a teacher makes of the same queries; the loss is the divergence from it, not cross-entropy.
    """
    written = memory.write(batch.context)
    found = memory.predict(written.state, batch.queries, batch.labels)
    shape = batch.queries.ids.shape[:-1]
    wrong = found.sums((found.logits.argmax(-1) != found.labels).float(), shape)
    labelled = found.sums(torch.ones_like(found.labels), shape) > 0
    if taught is None:
        target = F.cross_entropy(found.logits, found.labels)
    else:
        target = divergence(found, taught)
    losses = {"target": target, **{name: loss.mean() for name, loss in written.losses.items()}}
    total = torch.stack(list(losses.values())).sum()
    return MemoryOutput(total, losses, wrong == 0, labelled)


def divergence(found: Predictions, taught: Predictions) -> Tensor:
    """Return KL(teacher ‖ memory) in nats, the mean over the labelled tokens; what their labels are does not matter.

    A query's first token counts where both predict it.

    Args:
        found: from a memory.
        taught: what the teacher made of the same queries.
    """
    if len(found.labels) != len(taught.labels):
        found, taught = found.without_first(), taught.without_first()
    each = F.kl_div(
        found.logits.log_softmax(-1),
        taught.logits.log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    return each / max(len(found.labels), 1)
