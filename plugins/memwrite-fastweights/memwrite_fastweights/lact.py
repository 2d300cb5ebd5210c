"""LaCT (arXiv 2505.23884): SwiGLU fast weights, changed once per large chunk, perhaps by orthogonal steps.

f(x) = W1 (silu(W0 x) ⊙ W2 x). Every token of a chunk reads f of the chunk's start. Behind the chunk's last token, each W_i has
G_i, the sum of −lr_i ∇ℓ of its tokens with ℓ(W; k, v) = −⟨f(k), v⟩, at the weights W from the chunk's start, and

    D ← G + m̄ D;    W ← rows of (W + D, or the orthogonal matrix next to D), each as long as it was at first

with m̄ the mean momentum of the chunk's tokens. The state holds W, D, the sums of G and m so far, the lengths of the rows, and the
weights that the unfinished chunk leads to: those are read from a state at rest, so nothing waits for a chunk to be full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite_fastweights.cell import Cell
from memwrite_fastweights.chunks import COUNT, Chunk, Layer, chosen
from memwrite_fastweights.config import LactConfig
from memwrite_fastweights.kinds import SWIGLU

NAMES = ("W0", "W1", "W2")
#: W0 and W2, one below the other.
BOTH = "W02"
START, STEP, GRADIENT, LENGTH = (f"latent.{n}." for n in ("start", "step", "gradient", "length"))
MOMENTUM = "latent.momentum"
#: Newton and Schulz's iterations, as tuned for Muon: a X + (b A + c A²) X, with A = X Xᵀ.
ITERATIONS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


@dataclass(frozen=True)
class LactRule:
    """The rule.

    Attributes:
        chunk: C.
        muon: make the steps orthogonal.
    """

    chunk: int
    muon: bool

    def courses(self, tokens: Layer, real: Tensor, count: Tensor) -> tuple[()]:
        """Return nothing: within a chunk weights stay as they are."""
        return ()

    def begin(self, state: Layer) -> Layer:
        """Put W2 below W0, so that one product with both gives gates and what they let through."""
        joined = {
            prefix + BOTH: torch.cat([state[prefix + "W0"], state[prefix + "W2"]], axis)
            for prefix, axis in ((START, -2), (STEP, -2), (GRADIENT, -2), (LENGTH, -1))
            if prefix + "W0" in state
        }
        return {**state, **joined}

    def write(self, state: Layer, chunk: Chunk) -> tuple[Tensor | None, Layer]:
        """See `Rule.write`. Tokens: keys, values, `rates` lr of width 3, and perhaps `momentum` of width 1."""
        after, tokens = dict(state), chunk.tokens
        real = chunk.real[:, None, :, None]
        keys, values, down = tokens["keys"], tokens["values"], state[START + "W1"]
        rate0, rate1, rate2 = torch.split(tokens["rates"].masked_fill(~real, 0), 1, -1)
        gate, up = torch.chunk(keys @ state[START + BOTH].mT, 2, -1)
        sigma = gate.sigmoid()
        passed = gate * sigma
        # −∇ℓ of W1 is v hᵀ, that of W0 and W2 is y kᵀ.
        inner = values @ down
        slope = torch.addcmul(sigma, passed, 1 - sigma)
        steps = torch.cat([rate0 * inner * up * slope, rate2 * inner * passed], -1)
        after[GRADIENT + BOTH] = state[GRADIENT + BOTH] + steps.mT @ keys
        after[GRADIENT + "W1"] = state[GRADIENT + "W1"] + (rate1 * values).mT @ (passed * up)
        if "momentum" in tokens:
            momentum = tokens["momentum"].masked_fill(~real, 0)
            after[MOMENTUM] = state[MOMENTUM] + momentum.sum((-1, -2))
        if chunk.complete is not False:
            changed = self._changed(after, torch.full_like(state[COUNT], self.chunk))
            after |= {n: chosen(chunk.complete, x, after[n]) for n, x in changed.items()}
        if chunk.queries is None:
            return None, after
        gate, up = torch.chunk(chunk.queries @ state[START + BOTH].mT, 2, -1)
        return (F.silu(gate) * up) @ down.mT, after

    def finish(self, state: Layer, count: Tensor) -> Layer:
        """Let W be what the unfinished chunk leads to."""
        read = {name: state[START + name] for name in (BOTH, "W1")}
        if bool((count > 0).any()):
            pending = self._changed(state, count.clamp(min=1))
            read = {n: chosen(count > 0, pending[START + n], x) for n, x in read.items()}
        parted = {n: x for n, x in state.items() if not n.endswith(BOTH)}
        for prefix in ("", START, STEP, GRADIENT):
            joined = state.get(prefix + BOTH) if prefix else read[BOTH]
            if joined is not None:
                parted[prefix + "W0"], parted[prefix + "W2"] = torch.chunk(joined, 2, -2)
        return {**parted, "W1": read["W1"]}

    def _changed(self, state: Layer, count: Tensor) -> dict[str, Tensor]:
        """Return what is new behind a chunk of so many tokens (B,)."""
        changed: dict[str, Tensor] = {}
        for name, matrices in ((BOTH, 2), ("W1", 1)):
            step = state[GRADIENT + name]
            if MOMENTUM in state:
                mean = (state[MOMENTUM] / count[:, None])[..., None, None]
                step = torch.addcmul(step, mean, state[STEP + name])
                changed[STEP + name] = step
            if self.muon:
                step = orthogonal(torch.unflatten(step, -2, (matrices, -1))).flatten(-3, -2)
            moved = state[START + name] + step
            length = state[LENGTH + name][..., None]
            changed[START + name] = moved * (length / (moved.norm(dim=-1, keepdim=True) + 1e-5))
            changed[GRADIENT + name] = torch.zeros_like(step)
        if MOMENTUM in state:
            changed[MOMENTUM] = torch.zeros_like(state[MOMENTUM])
        return changed


def orthogonal(matrices: Tensor) -> Tensor:
    """Return about U Vᵀ for matrices U S Vᵀ (..., n, m), with singular values near 1; zeros stay zeros."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in ITERATIONS:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class LactCell(Cell):
    """Makes k = L2(silu(W_k x)), v = silu(W_v x), and every head's three learning rates and momentum.

    Args:
        config: see `LactConfig`.
        width: D, of the hidden states.
        dtype: of the parameters.
    """

    kind = SWIGLU

    def __init__(self, config: LactConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__(config, width, dtype)
        self._config = config
        self.rates = nn.Linear(width, 3 * config.heads, dtype=dtype)
        nn.init.zeros_(self.rates.weight)
        nn.init.constant_(self.rates.bias, math.log(math.expm1(config.learning_rate)))
        if config.momentum:
            self.momentum = nn.Linear(width, config.heads, dtype=dtype)
        inner = config.expand * config.rank
        shapes = {
            "W0": (inner, config.rank),
            "W1": (config.values, inner),
            "W2": (inner, config.rank),
        }
        self.start = nn.ParameterDict(
            {
                name: nn.Parameter(
                    torch.randn(config.heads, *shape, dtype=dtype) * shape[1] ** -0.5
                )
                for name, shape in shapes.items()
            }
        )

    @property
    def rule(self) -> LactRule:
        """Return the rule."""
        return LactRule(self._config.chunk, self._config.muon)

    def empty(self) -> dict[str, Tensor]:
        """Return one row of the state of a memory that has read nothing."""
        state: dict[str, Tensor] = dict(self.start.items())
        for name, weights in self.start.items():
            state[START + name] = weights
            state[GRADIENT + name] = torch.zeros_like(weights)
            state[LENGTH + name] = weights.norm(dim=-1)
            if self._config.momentum:
                state[STEP + name] = torch.zeros_like(weights)
        if self._config.momentum:
            state[MOMENTUM] = self.rates.bias.new_zeros(self._config.heads)
        state[COUNT] = torch.zeros((), dtype=torch.long, device=self.rates.bias.device)
        return state

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Make the tokens of hidden states (B, T, D)."""
        keys = F.silu(self.by_head(self.key(hidden)))
        tokens = {
            "keys": keys / (keys.norm(dim=-1, keepdim=True) + 1e-5),
            "values": F.silu(self.by_head(self.value(hidden))),
            "rates": F.softplus(self.by_head(self.rates(hidden))),
        }
        if self._config.momentum:
            tokens["momentum"] = self.by_head(self.momentum(hidden)).sigmoid()
        return tokens
