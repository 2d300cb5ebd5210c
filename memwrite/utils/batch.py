"""What values made of tensors have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor


class Batch(ABC):
    """A value made of tensors, whose first axis counts its rows."""

    @abstractmethod
    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply the same change to every tensor."""

    def to(self, device: torch.device | str) -> Self:
        """Return the value on `device`; tensors that are on it already are shared."""
        return self.map(lambda tensor: tensor.to(device))

    def detach(self) -> Self:
        """Return the same numbers without their graph."""
        return self.map(torch.detach)

    def clone(self) -> Self:
        """Return a copy that shares no memory with this one."""
        return self.map(torch.clone)

    def rows(self, index: Tensor | slice) -> Self:
        """Return the rows (users, documents) that `index` names; a row may be named many times."""
        return self.map(lambda tensor: tensor[index])
