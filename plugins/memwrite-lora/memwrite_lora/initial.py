"""Where the weights begin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite_lora.config import LoraConfig


def kaiming(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """(outputs, inputs), uniform, as `nn.Linear` begins (He et al. 2015 with a = √5)."""
    weight = torch.empty(outputs, inputs, dtype=dtype)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return weight


def output_map(
    config: LoraConfig, weight: Tensor, heads: int, values: int, dtype: torch.dtype
) -> Tensor:
    """D (width, H·Dv) for the projection with this weight (width, inputs)."""
    if config.init == "random":
        return config.gain * kaiming(weight.shape[0], heads * values, dtype)
    start = torch.zeros(weight.shape[0], heads * values, dtype=dtype)
    if config.init == "base-slice":
        columns = weight[:, : min(config.slice_width, values)].to(dtype)
        start[:, : columns.shape[1]] = config.gain * F.normalize(columns, dim=0, eps=1e-6)
    return start
