"""Lattice's memory (arXiv 2504.05646): slots of length 1, each of which takes on only what is orthogonal to it.

S has a slot in each of its Dk columns. With φ_i the slots at the start of a chunk, and the error of what they reconstruct of
token j, e_j = v_j − Σ_i k_ji φ_i, gradient descent on ½‖e_j‖² through the slots' normalisation moves slot i by

    θ_j k_ji (I − φ_i φ_iᵀ) e_j

and after t tokens of the chunk slot i is φ_i + Σ_{j ≤ t} of these, scaled to length 1 again. That scaling is what forgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite_fastweights.cell import Cell, unit
from memwrite_fastweights.chunks import COUNT, Chunk, Layer, chosen
from memwrite_fastweights.config import LatticeConfig
from memwrite_fastweights.kinds import MATRIX

START = "latent.start.S"


@dataclass(frozen=True)
class LatticeRule:
    """The rule.

    Attributes:
        chunk: C.
    """

    chunk: int

    def courses(self, tokens: Layer, real: Tensor, count: Tensor) -> tuple[()]:
        """Return nothing: how slots are scaled depends on them."""
        return ()

    def begin(self, state: Layer) -> Layer:
        """Return the tensors as they are."""
        return state

    def finish(self, state: Layer, count: Tensor) -> Layer:
        """Return the tensors as they are: S has seen everything."""
        return state

    def write(self, state: Layer, chunk: Chunk) -> tuple[Tensor | None, Layer]:
        """See `Rule.write`. Tokens: keys, values, and `step` θ ≥ 0 of width 1.

        Slots are scaled at every token, and no token's slots are ever made: the length of a slot follows from the products of
        errors with each other, with φ and with what the slot has moved by.
        """
        keys, slots = chunk.tokens["keys"], state["S"]
        start = F.normalize(state.get(START, slots), dim=-2)
        # A slot lies 1 along φ before it is scaled.
        slots = slots / (start * slots).sum(-2, keepdim=True)
        weights = keys * chunk.tokens["step"].masked_fill(~chunk.real[:, None, :, None], 0)
        errors = chunk.tokens["values"] - keys @ start.mT
        along = (weights * (errors @ start)).cumsum(-2)
        reads = chunk.queries
        if reads is not None:
            moved = slots - start
            products = errors @ errors.mT
            across = weights * (2 * (errors @ moved) + 2 * (products.tril(-1) @ weights))
            across = across + weights.square() * products.diagonal(dim1=-2, dim2=-1)[..., None]
            square = across.cumsum(-2) - along.square() + moved.square().sum(-2, keepdim=True)
            first = moved.square().sum(-2, keepdim=True)
            before = torch.cat([first, square[..., :-1, :]], -2).clamp(min=0)
            reads = reads / (1 + before).sqrt()
            less = reads * F.pad(along[..., :-1, :], (0, 0, 1, 0))
            reads = reads @ slots.mT + (reads @ weights.mT).tril(-1) @ errors - less @ start.mT
        slots = slots + errors.mT @ weights - start * along[..., -1:, :]
        after = {**state, "S": F.normalize(slots, dim=-2)}
        if START in state:
            after[START] = chosen(chunk.complete, after["S"], state[START])
        return reads, after


class LatticeCell(Cell):
    """Makes k = L2(silu(W_k x)), v = silu(W_v x), and the step θ of every head.

    Args:
        config: see `LatticeConfig`.
        width: D, of the hidden states.
        dtype: of the parameters.
    """

    kind = MATRIX

    def __init__(self, config: LatticeConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__(config, width, dtype)
        self._config = config
        self.step = nn.Linear(width, config.heads, dtype=dtype)
        nn.init.zeros_(self.step.weight)
        nn.init.constant_(self.step.bias, config.step_bias)
        # Slots that were alike would stay alike.
        self.start = nn.Parameter(
            torch.randn(config.heads, config.values, config.rank, dtype=dtype)
        )

    @property
    def rule(self) -> LatticeRule:
        """Return the rule."""
        return LatticeRule(self._config.chunk)

    def empty(self) -> dict[str, Tensor]:
        """Return one row of the state of a memory that has read nothing."""
        slots = F.normalize(self.start, dim=-2)
        if self._config.chunk == 1:
            return {"S": slots}
        count = torch.zeros((), dtype=torch.long, device=slots.device)
        return {"S": slots, START: slots, COUNT: count}

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Make the tokens of hidden states (B, T, D)."""
        return {
            "keys": unit(F.silu(self.by_head(self.key(hidden)))),
            "values": F.silu(self.by_head(self.value(hidden))),
            "step": self._config.most_step * self.by_head(self.step(hidden)).sigmoid(),
        }
