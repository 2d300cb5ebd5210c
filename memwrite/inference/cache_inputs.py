"""A memory as arguments of transformers' own `generate`: a cache, its attention mask and positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memwrite.backbones.sliding_window import without_holes
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import InputError
from memwrite.inference.prefill_cache import PrefillOutput
from memwrite.protocols import Conditioning


def cache_inputs(
    backbone: TransformersBackbone,
    conditioning: Conditioning,
    prefilled: PrefillOutput,
    ids: Tensor | None,
) -> dict[str, Any]:
    """Return arguments of `generate`; see `Memory.cache`.

    Raises:
        InputError: the memory is more than a cache can carry, or the ids do not fit it.
    """
    past = prefilled.key_values
    for what, held in (
        ("corrections of the model's projections", conditioning.corrections),
        ("a bias", None if past is None else past.bias),
        (
            "a rule of what each query sees",
            None if past is None or past.rule is None else (past.rule,),
        ),
    ):
        if held is not None and len(held):
            raise InputError(
                f"this memory comes with {what}, which no plain cache of transformers carries: use Memory.generate"
            )
    if past is not None and backbone.windows.size is not None:
        if len(set(past.mask.sum(1).tolist())) > 1:
            raise InputError(
                "memories of different lengths cannot share a cache under a sliding window: take one row at a time"
            )
        past = without_holes(past)
    device = backbone.info.device
    rows = 1 if ids is None else ids.shape[0]
    mask = torch.zeros(rows, 0, dtype=torch.bool, device=device)
    start = torch.zeros(rows, dtype=torch.int64, device=device)
    if past is not None:
        if ids is not None and ids.shape[0] != past.mask.shape[0]:
            raise InputError(f"the state holds {past.mask.shape[0]} rows, but {rows} were given")
        mask, start = past.mask, past.next_position
    inputs: dict[str, Any] = {backbone.cache_name: backbone.plain_cache(past)}
    length = 1
    if ids is not None:
        inputs["input_ids"] = ids = ids.to(device)
        length = ids.shape[1]
        mask = torch.cat([mask, torch.ones_like(ids, dtype=torch.bool)], 1)
    steps = torch.arange(length, device=device)
    return {**inputs, "attention_mask": mask.long(), "position_ids": start[:, None] + steps}
