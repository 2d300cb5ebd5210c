"""How far the model with the memory is from the model with the context."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.protocols import Backbone
from memwrite_gradient.frozen.study import Study


def divergence(
    backbone: Backbone, hidden: Tensor, study: Study, top_k: int | None = None
) -> Tensor:
    """Return (B,): the mean over a row's tokens, in nats, of KL(with context ‖ with memory), or the negative
    log-likelihood with the memory where there is no teacher.

    Args:
        backbone: gives the logits.
        hidden: (B · N, T - 1, D), with the memory, as `predictions` gives them.
        study: the texts.
        top_k: sum over the k tokens only that are most probable with the context.
    """
    own = backbone.logits(hidden).log_softmax(-1)
    if study.teacher is None:
        targets = study.ids[..., 1:].flatten(0, 1)
        each = F.nll_loss(own.transpose(1, 2), targets, reduction="none")
    else:
        with torch.no_grad():
            teacher = backbone.logits(study.teacher.flatten(0, 1)).log_softmax(-1)
        if top_k is not None:
            teacher, best = teacher.topk(min(top_k, teacher.shape[-1]), dim=-1)
            own = own.gather(-1, best)
        each = (teacher.exp() * (teacher - own)).sum(-1)
    real = study.mask[..., 1:]
    total = (each.reshape(real.shape) * real).sum((1, 2))
    return total / real.sum((1, 2)).clamp(min=1)
