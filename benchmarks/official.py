"""The authors' GradMem beside memwrite's, from a checkout of github.com/yurakuratov/gradmem."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import torch
from memwrite_gradient.writer import GradientWriter
from torch import Tensor

from memwrite import Memory
from memwrite.tasks.base import Batch

CHECKOUT = "MEMWRITE_OFFICIAL_GRADMEM"


def official_model(memory: Memory) -> Any:
    """Return their model, in training mode, with the weights and settings of a gradient memory (SGD, own head, no projection).

    Raises:
        KeyError: the environment names no checkout.
    """
    sys.path.insert(0, os.environ[CHECKOUT])
    # Attention for GPUs, which asks for triton when it is imported.
    sys.modules.setdefault("attn_double_bwd", types.ModuleType("attn_double_bwd"))
    from grad_memgpt import GradMemGPT, GradMemGPTConfig  # type: ignore[import-not-found]

    writer = memory.writer
    assert isinstance(writer, GradientWriter)
    settings = writer.config
    config = GradMemGPTConfig(
        base_config=memory.model.config,
        n_mem_tokens=settings.slots,
        K=settings.steps,
        lr=settings.lr,
        grad_mode="second",
        use_write_head=True,
        add_inner_loss_to_outer=True,
        inner_loss_weight=settings.reconstruction_weight,
    )
    model = GradMemGPT(config).train()
    model.model.load_state_dict(memory.model.state_dict())
    with torch.no_grad():
        model.mem.copy_(writer.fast.slots)
        model.write_head.weight.copy_(writer.head)
    return model


def outputs(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Return their "loss" and "predictions" (B, T + 1, V) for contexts with one query each."""
    ids = {"context_input_ids": batch.context.ids, "query_input_ids": batch.queries.ids[:, 0]}
    result: dict[str, Tensor] = model(ids, labels=batch.labels[:, 0])
    return result
