"""The fast weights that a write descends: the slots and, per example, their projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from memwrite.modules.memory_tokens import learned
from memwrite_gradient.config import GradientConfig


class FastWeights(nn.Module):
    """The learned start of the inner loop's params, and the memory that they make.

    The params are [slots (B, M, D)] or, where each example descends its own projection too,
    [slots, W (B, D, D), b (B, D)].

    Args:
        config: its slots, init_std and projection.
        width: D.
        dtype: of the parameters.
    """

    def __init__(self, config: GradientConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.slots = learned(config.slots, width, config.init_std, dtype)
        self.projection: nn.Linear | None = None
        self._per_example = config.projection == "per-example"
        if config.projection != "none":
            self.projection = nn.Linear(width, width, dtype=dtype)
            nn.init.eye_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    @property
    def size(self) -> tuple[int, int]:
        """Return (R, D), the size of one example's params as rows; see `pack`."""
        slots, width = self.slots.shape
        return slots + (width + 1 if self._per_example else 0), width

    def start(self, rows: int) -> list[Tensor]:
        """Return the params of `rows` examples that have read nothing."""
        start: list[Tensor] = [self.slots]
        if self._per_example and self.projection is not None:
            start += [self.projection.weight, self.projection.bias]
        return [tensor.expand(rows, *tensor.shape).clone() for tensor in start]

    def project(self, params: Sequence[Tensor]) -> Tensor:
        """Return (B, M, D), the slots as the model sees them (GradMem, section 3)."""
        if self._per_example:
            slots, weight, bias = params
            return torch.baddbmm(bias[:, None], slots, weight.mT)
        slots = params[0]
        return slots if self.projection is None else self.projection(slots)

    def pack(self, params: Sequence[Tensor]) -> Tensor:
        """Return the params as rows (B, R, D): slots, then the rows of W, then b."""
        return torch.cat([tensor if tensor.ndim == 3 else tensor[:, None] for tensor in params], 1)

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Undo `pack`."""
        if not self._per_example:
            return [packed]
        slots, width = self.slots.shape
        return [packed[:, :slots], packed[:, slots : slots + width], packed[:, -1]]
