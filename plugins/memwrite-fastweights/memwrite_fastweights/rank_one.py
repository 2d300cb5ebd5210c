"""Weights that every token of a chunk changes by a matrix of rank one: reads on the way, and the weights at the end.

With u_j the step of token j and x_j its input, W after t tokens of a chunk is

    W_t = a_t W + b_t S + Σ_j c_tj u_j x_jᵀ

of the weights W and a second matrix S from before the chunk, so W_t q is found without W_t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Course:
    """How weights depend on the time in a chunk of C tokens.

    Attributes:
        own: a (B, H, C + 1), the share of W after t tokens.
        other: b, likewise that of S; None where there is no S.
        each: c (B, H, C + 1, C), the share of each token's step.
    """

    own: Tensor
    other: Tensor | None
    each: Tensor

    def unbind(self) -> list[Course]:
        """Return the courses along a leading axis, each for itself."""
        own, each = torch.unbind(self.own), torch.unbind(self.each)
        other = [None] * len(own) if self.other is None else torch.unbind(self.other)
        return [Course(*parts) for parts in zip(own, other, each, strict=True)]

    def read(
        self, weights: Tensor, second: Tensor | None, steps: Tensor, inputs: Tensor, queries: Tensor
    ) -> Tensor:
        """Return W_{t−1} q_t.

        Args:
            weights: W (B, H, Dv, Dk).
            second: S, likewise, where there is one.
            steps: u (B, H, C, Dv).
            inputs: x (B, H, C, Dk).
            queries: q (B, H, C, Dk).
        """
        reads = self.own[..., :-1, None] * (queries @ weights.mT)
        if self.other is not None and second is not None:
            reads = reads + self.other[..., :-1, None] * (queries @ second.mT)
        return reads + ((queries @ inputs.mT) * self.each[..., :-1, :]) @ steps

    def last(self, weights: Tensor, second: Tensor | None, steps: Tensor, inputs: Tensor) -> Tensor:
        """Return W_C (B, H, Dv, Dk)."""
        after = self.own[..., -1, None, None] * weights
        if self.other is not None and second is not None:
            after = after + self.other[..., -1, None, None] * second
        return after + (self.each[..., -1, :, None] * steps).mT @ inputs
