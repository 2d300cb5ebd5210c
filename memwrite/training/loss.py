"""The training loss of a memory: what its queries' labelled tokens cost, plus the writer's own losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.memory import Memory
from memwrite.protocols import ReadOutput
from memwrite.state import Tokens
from memwrite.tasks.base import Batch


@dataclass(frozen=True)
class MemoryOutput:
    """The output of a training step.

    Attributes:
        loss: the sum of `losses`.
        logits: as in `ReadOutput`.
        losses: name -> mean, with its graph: "target" over labelled tokens, those of the writer over rows.
        exact: (B,) or (B, Q) bool, whether every labelled token of a query was the model's first choice.
        labelled: of the same shape, whether the query has a labelled token; `exact` counts only where it has.
    """

    loss: Tensor
    logits: Tensor
    losses: Mapping[str, Tensor]
    exact: Tensor
    labelled: Tensor


def training_loss(memory: Memory, batch: Batch, taught: ReadOutput | None = None) -> MemoryOutput:
    """Write the contexts, read the queries, and compare with the labels, or with a teacher.

    The loss is the mean over all labelled tokens, plus the mean of each of the writer's losses.

    Args:
        memory: to be trained.
        batch: its labels say which tokens count.
        taught: what a teacher makes of the same queries; the loss is the divergence from it, not cross-entropy.
    """
    written = memory.write(batch.context)
    output = memory.read(written.state, batch.queries)
    queries = batch.queries.to(output.logits.device)
    target, exact, labelled = target_loss(output, queries, batch.labels)
    if taught is not None:
        target = divergence(output, taught, queries, batch.labels)
    losses = {"target": target, **{name: loss.mean() for name, loss in written.losses.items()}}
    total = torch.stack(list(losses.values())).sum()
    return MemoryOutput(total, output.logits, losses, exact, labelled)


def target_loss(
    output: ReadOutput, queries: Tokens, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean cross-entropy of the labelled tokens, each predicted from the real token before it.

    Args:
        output: of reading `queries`.
        queries: (B, T) or (B, Q, T).
        labels: as in `Batch`.

    Returns:
        The loss, and `exact` and `labelled` of `MemoryOutput`.
    """
    predicted, labels = aligned(output, queries, labels)
    loss = F.cross_entropy(predicted.flatten(0, -2), labels.flatten(), ignore_index=-100)
    ignored = labels == -100
    exact = ((predicted.argmax(-1) == labels) | ignored).all(-1)
    return loss, exact, ~ignored.all(-1)


def divergence(output: ReadOutput, taught: ReadOutput, queries: Tokens, labels: Tensor) -> Tensor:
    """Return KL(teacher ‖ memory) in nats, the mean over the labelled tokens; what their labels are does not matter.

    A query's first token counts where both predict it.

    Args:
        output: of reading `queries`.
        taught: what the teacher made of them.
        queries: (B, T) or (B, Q, T).
        labels: as in `Batch`.
    """
    if output.first_logits is None or taught.first_logits is None:
        output, taught = replace(output, first_logits=None), replace(taught, first_logits=None)
    found, labels_of = aligned(output, queries, labels)
    counts = labels_of != -100
    expected = aligned(taught, queries, labels)[0][counts].log_softmax(-1)
    each = F.kl_div(found[counts].log_softmax(-1), expected, reduction="sum", log_target=True)
    return each / counts.sum().clamp(min=1)


def aligned(output: ReadOutput, queries: Tokens, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (..., T', V) and the labels (..., T') that they are to predict; arguments as in `target_loss`.

    Without `output.first_logits` nothing predicts a query's first token, and its label is dropped.
    """
    packed, order = queries.pack()
    labels = labels.to(order.device).gather(-1, order).masked_fill(~packed.mask, -100)
    logits = output.logits.gather(
        -2, order[..., None].expand(*order.shape, output.logits.shape[-1])
    )
    first = output.first_logits
    if first is None:
        return logits[..., :-1, :], labels[..., 1:]
    first = first[:, None, :] if logits.ndim == 3 else first[:, None, None, :]
    first = first.expand(*logits.shape[:-2], 1, -1)
    return torch.cat([first, logits[..., :-1, :]], -2), labels
