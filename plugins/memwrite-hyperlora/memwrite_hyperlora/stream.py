"""What every layer of a model receives: the residual stream, seen from outside."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from memwrite.protocols import ProjectionDeltas


class Listener:
    """Keeps what one layer receives during one run, and changes nothing; a `ResidualAdapter`.

    Attributes:
        heard: (B, T, D), once the run is over.
    """

    heard: Tensor

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {}

    def entering(self, hidden: Tensor) -> Tensor:
        """Keep what the layer receives."""
        self.heard = hidden
        return hidden

    def leaving(self, hidden: Tensor) -> Tensor:
        """Let pass what the layer gives."""
        return hidden

    def rows(self, index: Tensor) -> Self:
        """Return the adapter of these rows: the same, since it differs by nothing."""
        return self
