"""What writers of regressions share: a cell for every layer, and where they start."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from memwrite.modules.layers import chosen_layers
from memwrite.protocols import Backbone
from memwrite.state import MemoryState, StateSpec
from memwrite_regression.cells import RidgeCell
from memwrite_regression.config import RidgeConfig


class RegressionWriter(nn.Module):
    """Keeps one regression for each layer and head.

    Args:
        config: sizes and layers.
        backbone: whose layers are written from.
        cell: makes keys, values and gates of a layer; of (config, width of the hidden states, dtype).

    Raises:
        ConfigError: the backbone has no such layer.
    """

    reserved_positions = 0

    def __init__(self, config: RidgeConfig, backbone: Backbone, cell: type[RidgeCell]) -> None:
        super().__init__()
        info = backbone.info
        layers = chosen_layers(config.layers, info)
        width, dtype = info.hidden_size, info.state_dtype
        head = len(layers), config.heads
        shapes = {
            "S": (*head, config.values, config.rank),
            "G": (*head, config.rank, config.rank),
            "log_ridge": (*head, config.rank),
        }
        self.spec = StateSpec("gram", shapes, layers, dtype)
        self._backbone = backbone
        self.cells = nn.ModuleDict({str(layer): cell(config, width, dtype) for layer in layers})

    def cell(self, layer: int) -> RidgeCell:
        """Return the cell of a layer of the backbone."""
        return cast(RidgeCell, self.cells[str(layer)])

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states of no pairs, with Λ."""
        log_ridge = torch.stack([self.cell(layer).log_ridge for layer in self.spec.layers])
        empty = self.spec.zeros(batch_size, log_ridge.device)
        rows: Tensor = log_ridge.expand(batch_size, *log_ridge.shape).clone()
        return replace(empty, tensors={**empty.tensors, "log_ridge": rows})
