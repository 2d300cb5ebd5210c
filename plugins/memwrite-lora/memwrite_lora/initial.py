"""How the weights are initialised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.modules.low_rank import kaiming
from memwrite_lora.config import LoraConfig


def output_map(
    config: LoraConfig, weight: Tensor, heads: int, values: int, dtype: torch.dtype
) -> Tensor:
    """Make the output map D (width, H·Dv) of the projection with this weight (width, inputs)."""
    if config.init == "random":
        return config.gain * kaiming(weight.shape[0], heads * values, dtype)
    start = torch.zeros(weight.shape[0], heads * values, dtype=dtype)
    if config.init == "base-slice":
        columns = weight[:, : min(config.slice_width, values)].to(dtype)
        start[:, : columns.shape[1]] = config.gain * F.normalize(columns, dim=0, eps=1e-6)
    return start
