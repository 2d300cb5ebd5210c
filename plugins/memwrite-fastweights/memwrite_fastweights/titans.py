"""Titans' memory (arXiv 2501.00663, equations 8 to 15): gradient descent on what each key recalls, with momentum and forgetting.

With ℓ(M; k, v) = mean over the Dv numbers of (M(k) − v)², and M₀ the memory at the start of token t's chunk:

    S_t = η_t S_{t−1} − θ_t ∇ℓ(M₀; k_t, v_t)
    M_t = (1 − α_t) M_{t−1} + S_t

M is a matrix, or two with a GELU between them. The state holds M, S, M₀ and how many tokens of the chunk are written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite_fastweights.cell import Cell, unit
from memwrite_fastweights.chunks import COUNT, Chunk, Layer, chosen
from memwrite_fastweights.config import TitansConfig
from memwrite_fastweights.kinds import MATRIX, MLP
from memwrite_fastweights.rank_one import Course

START, MOMENTUM = "latent.start.", "latent.momentum."


@dataclass(frozen=True)
class TitansRule:
    """The rule.

    Attributes:
        names: of the memory's matrices, from the first to the last.
        chunk: C.
    """

    names: tuple[str, ...]
    chunk: int

    def write(self, state: Layer, chunk: Chunk) -> tuple[Tensor | None, Layer]:
        """See `Rule.write`. Tokens: keys, values, and of width 1 `step` θ ≥ 0, `log_momentum` ln η and `log_keep` ln(1 − α)."""
        tokens = chunk.tokens
        inputs, steps = self._descent(state, tokens["keys"], tokens["values"])
        weights, momentum = chunk.courses
        reads, after = chunk.queries, dict(state)
        for i, (name, x, u) in enumerate(zip(self.names, inputs, steps, strict=True)):
            second = state.get(MOMENTUM + name)
            if reads is not None:
                reads = weights.read(state[name], second, u, x, reads if i == 0 else F.gelu(reads))
            after[name] = weights.last(state[name], second, u, x)
            if second is not None:
                after[MOMENTUM + name] = momentum.last(second, None, u, x)
            if START + name in state:
                after[START + name] = chosen(chunk.complete, after[name], state[START + name])
        return reads, after

    def courses(self, tokens: Layer, real: Tensor, count: Tensor) -> tuple[Course, Course]:
        """Return the courses of the weights and of their momentum; without momentum the second is not used.

        S_s has of token j's step θ_j H_sj, and M_t has of S_s K_ts, with H and K the products of η and 1 − α in between.
        """
        idle = ~real[:, :, None]
        rate = tokens["step"][..., 0].masked_fill(idle, 0)[..., None, :]
        keep = products(tokens["log_keep"][..., 0].masked_fill(idle, 0))
        # A slot without a token adds no momentum to the weights.
        adds = keep[..., 1:] * real[:, :, None, None]
        if "log_momentum" not in tokens:
            plain = Course(keep[..., 0], None, adds * rate)
            return plain, plain
        decay = products(tokens["log_momentum"][..., 0].masked_fill(idle, 0))
        both = adds @ decay[..., 1:, :]
        return (
            Course(keep[..., 0], both[..., 0], both[..., 1:] * rate),
            Course(decay[..., 0], None, decay[..., 1:] * rate),
        )

    def begin(self, state: Layer) -> Layer:
        """Return the tensors as they are."""
        return state

    def finish(self, state: Layer, count: Tensor) -> Layer:
        """Return the tensors as they are: M has seen everything."""
        return state

    def _descent(
        self, state: Layer, keys: Tensor, values: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what each matrix M₀ receives, x, and steps u with −∇ℓ = u xᵀ for each token, all (B, H, C, n)."""
        start = [state.get(START + name, state[name]) for name in self.names]
        inputs, hidden = [keys], []
        for weights in start:
            hidden.append(inputs[-1] @ weights.mT)
            inputs.append(F.gelu(hidden[-1]))
        steps = [(values - hidden[-1]) * (2 / values.shape[-1])]
        for weights, z in zip(start[:0:-1], hidden[-2::-1], strict=True):
            steps.append((steps[-1] @ weights) * gelu_slope(z))
        return inputs[:-1], steps[::-1]


def products(log_gates: Tensor) -> Tensor:
    """Return products of gates (..., C), given by their logarithms, as (..., C + 1, C + 1): in row t and column s that of
    the gates s + 1 to t, and 0 for s > t.

    Sums of logarithms between s and t, never differences of sums from the start, which a gate of 0 would break.
    """
    size = log_gates.shape[-1]
    below = torch.ones(size + 1, size + 1, dtype=torch.bool, device=log_gates.device).tril(-1)
    spread = F.pad(log_gates, (1, 0))[..., None].expand(*log_gates.shape[:-1], size + 1, size + 1)
    sums = spread.masked_fill(~below, 0).cumsum(-2)
    return sums.exp().tril()


def gelu_slope(x: Tensor) -> Tensor:
    """Return the derivative of the exact GELU."""
    normal = (-0.5 * x * x).exp() / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * normal


class TitansCell(Cell):
    """Makes k = L2(silu(W_k x)), v = silu(W_v x), and the gates θ, η and α of every head.

    Args:
        config: see `TitansConfig`.
        width: D, of the hidden states.
        dtype: of the parameters.
    """

    def __init__(self, config: TitansConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__(config, width, dtype)
        self.kind = MATRIX if config.inner is None else MLP
        names = ("S",) if config.inner is None else ("W1", "W2")
        self._rule, self._config = TitansRule(names, config.chunk), config
        biases = [config.step_bias, config.forget_bias]
        biases += [config.momentum_bias] if config.momentum else []
        self.gates = nn.Linear(width, len(biases) * config.heads, dtype=dtype)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor(biases).repeat(config.heads))
        sizes = [config.rank, *([] if config.inner is None else [config.inner]), config.values]
        self.start = nn.ParameterDict()
        for name, inputs, outputs in zip(names, sizes[:-1], sizes[1:], strict=True):
            weights = torch.zeros(config.heads, outputs, inputs, dtype=dtype)
            # Two matrices of zeros would have no gradients.
            if config.inner is not None:
                nn.init.normal_(weights, std=inputs**-0.5)
            self.start[name] = nn.Parameter(weights)

    @property
    def rule(self) -> TitansRule:
        """Return the rule."""
        return self._rule

    def empty(self) -> dict[str, Tensor]:
        """Return one row of the state of a memory that has read nothing."""
        state: dict[str, Tensor] = dict(self.start.items())
        if self._config.momentum:
            state |= {MOMENTUM + name: torch.zeros_like(x) for name, x in self.start.items()}
        if self._config.chunk > 1:
            state |= {START + name: x for name, x in self.start.items()}
            state[COUNT] = torch.zeros((), dtype=torch.long, device=self.gates.bias.device)
        return state

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Make the tokens of hidden states (B, T, D)."""
        step, forget, *momentum = torch.split(self.by_head(self.gates(hidden)), 1, -1)
        gates = {"step": self._config.most_step * step.sigmoid(), "log_keep": F.logsigmoid(-forget)}
        if momentum:
            gates["log_momentum"] = F.logsigmoid(momentum[0])
        keys = unit(F.silu(self.by_head(self.key(hidden))))
        return {"keys": keys, "values": F.silu(self.by_head(self.value(hidden))), **gates}
