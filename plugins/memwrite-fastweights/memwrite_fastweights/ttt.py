"""TTT-Linear and TTT-MLP (arXiv 2407.04620): self-supervised learning of v − k from k, in mini-batches.

f is a linear map or a network of two layers with a GELU, of weights W (biases among them). With the loss of a token,
ℓ(W; k, v) = ½‖LN(f(k; W)) − (v − k)‖², and W₀ the weights at the start of its mini-batch, after i of the mini-batch's tokens

    W_i = W₀ − τ_i Σ_{j ≤ i} θ_j ∇ℓ(W₀; k_j, v_j)

and a query reads q + LN(f(q; W_i)). The authors' code starts τ_i at 1/i and learns it; the paper has τ_i = 1. The state holds
W₀, the sum of gradients, τ_i, and i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite_fastweights.cell import Cell
from memwrite_fastweights.chunks import COUNT, Chunk, Layer, chosen
from memwrite_fastweights.config import TttConfig
from memwrite_fastweights.kinds import EPS, ONE, TTT_LINEAR, TTT_MLP, TWO, normed
from memwrite_fastweights.rank_one import Course

GRADIENT = "gradient."


@dataclass(frozen=True)
class TttRule:
    """The rule.

    Attributes:
        names: the ends of the layers' names, from the first to the last.
        chunk: the size of a mini-batch.
        scale: τ (chunk,).
    """

    names: tuple[str, ...]
    chunk: int
    scale: Tensor

    def courses(self, tokens: Layer, real: Tensor, count: Tensor) -> tuple[Course, Course]:
        """Return the courses of the weights and of the sum of gradients."""
        step = tokens["step"][..., 0].masked_fill(~real[:, :, None], 0)[..., None, :]
        slots = step.shape[-1]
        earlier = torch.ones(slots + 1, slots, dtype=torch.bool, device=step.device).tril(-1)
        each = torch.where(earlier, step, 0)
        now = count[..., None] + F.pad(real.cumsum(-1), (1, 0))
        rate = self._rate(now).to(step.dtype)[:, :, None].expand(*each.shape[:-1])
        one = torch.ones_like(rate)
        return Course(one, -rate, each * rate[..., None]), Course(one, None, each)

    def begin(self, state: Layer) -> Layer:
        """Put each layer's biases behind its weights, as the column of an input of 1."""
        joined = {
            prefix + "W" + name: torch.cat(
                [state[prefix + "W" + name], state[prefix + "b" + name][..., None]], -1
            )
            for prefix in ("", GRADIENT)
            for name in self.names
        }
        return {**state, **joined}

    def write(self, state: Layer, chunk: Chunk) -> tuple[Tensor | None, Layer]:
        """See `Rule.write`. Tokens: keys, values, and `step` θ ≥ 0 of width 1."""
        tokens = chunk.tokens
        inputs, steps = self._descent(state, tokens["keys"], tokens["values"])
        course, summed = chunk.courses
        reads, after = chunk.queries, dict(state)
        for name, x, u in zip(self.names, inputs, steps, strict=True):
            weights, gradient = state["W" + name], state[GRADIENT + "W" + name]
            if reads is not None:
                reads = with_one(reads if name == self.names[0] else gelu(reads))
                reads = course.read(weights, gradient, u, x, reads)
            if chunk.complete is not False:
                last = course.last(weights, gradient, u, x)
                after["W" + name] = chosen(chunk.complete, last, weights)
            begun = torch.zeros_like(gradient)
            if chunk.complete is not True:
                total = summed.last(gradient, None, -u, x)
                begun = chosen(chunk.complete, begun, total)
            after[GRADIENT + "W" + name] = begun
        if reads is not None and chunk.queries is not None:
            reads = chunk.queries + normed(reads, *self._norm(state))
        return reads, after

    def finish(self, state: Layer, count: Tensor) -> Layer:
        """Part weights and biases again, and keep the τ that the gradients under way are to be taken by."""
        parted = dict(state)
        for prefix in ("", GRADIENT):
            for name in self.names:
                joined = state[prefix + "W" + name]
                parted[prefix + "W" + name] = joined[..., :-1]
                parted[prefix + "b" + name] = joined[..., -1]
        parted["rate"] = self._rate(count).to(state["rate"].dtype)
        return parted

    def _rate(self, count: Tensor) -> Tensor:
        """Return τ after so many tokens of a mini-batch; 0 after none."""
        return F.pad(self.scale, (1, 0))[count]

    def _norm(self, state: Layer) -> tuple[Tensor, Tensor]:
        return state["norm.scale"][:, :, None], state["norm.shift"][:, :, None]

    def _descent(
        self, state: Layer, keys: Tensor, values: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what each layer receives, x, and steps u with −∇ℓ = u xᵀ for each token, all (B, H, C, n)."""
        inputs, hidden = [with_one(keys)], []
        for name in self.names:
            hidden.append(inputs[-1] @ state["W" + name].mT)
            inputs.append(with_one(gelu(hidden[-1])))
        scale, shift = self._norm(state)
        error = values - keys - normed(hidden[-1], scale, shift)
        steps = [norm_slope(hidden[-1], error * scale)]
        for name, z in zip(self.names[:0:-1], hidden[-2::-1], strict=True):
            steps.append((steps[-1] @ state["W" + name][..., :-1]) * gelu_slope(z))
        return inputs[:-1], steps[::-1]


def with_one(x: Tensor) -> Tensor:
    """Append a 1 to (..., D)."""
    return F.pad(x, (0, 1), value=1.0)


def gelu(x: Tensor) -> Tensor:
    """Return the GELU that TTT uses, by tanh."""
    return F.gelu(x, approximate="tanh")


def gelu_slope(x: Tensor) -> Tensor:
    """Return the derivative of `gelu`."""
    root, cubic = (2 / torch.pi) ** 0.5, 0.044715
    tanh = torch.tanh(root * (x + cubic * x * x * x))
    slope: Tensor = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * root * (1 + 3 * cubic * x * x)
    return slope


def norm_slope(x: Tensor, error: Tensor) -> Tensor:
    """Take a gradient (..., D) of a plain layer norm's output back to its input x."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    unit: Tensor = centred / deviation
    along = unit * (error * unit).mean(-1, keepdim=True)
    return (error - error.mean(-1, keepdim=True) - along) / deviation


class TttCell(Cell):
    """Makes k = W_k x, v = W_v x, and every head's step θ.

    Args:
        config: see `TttConfig`.
        width: D, of the hidden states.
        dtype: of the parameters.
    """

    def __init__(self, config: TttConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__(config, width, dtype)
        self.kind = TTT_LINEAR if config.inner is None else TTT_MLP
        self._names: tuple[str, ...] = ONE if config.inner is None else TWO
        self._config = config
        self.step = nn.Linear(width, config.heads, dtype=dtype)
        nn.init.normal_(self.step.weight, std=0.02)
        nn.init.zeros_(self.step.bias)
        self.scale = nn.Parameter(1 / torch.arange(1, config.chunk + 1, dtype=dtype))
        inner = [] if config.inner is None else [config.inner]
        sizes = [config.rank, *inner, config.rank]
        self.start = nn.ParameterDict()
        for name, inputs, outputs in zip(self._names, sizes[:-1], sizes[1:], strict=True):
            weights = torch.empty(config.heads, outputs, inputs, dtype=dtype).normal_(std=0.02)
            self.start["W" + name] = nn.Parameter(weights)
            self.start["b" + name] = nn.Parameter(weights.new_zeros(config.heads, outputs))
        ones = torch.ones(config.heads, config.rank, dtype=dtype)
        self.norm_scale, self.norm_shift = nn.Parameter(ones), nn.Parameter(ones * 0)

    @property
    def rule(self) -> TttRule:
        """Return the rule, with the τ learned so far."""
        return TttRule(self._names, self._config.chunk, self.scale.clamp(min=0))

    def empty(self) -> dict[str, Tensor]:
        """Return one row of the state of a memory that has read nothing."""
        return {
            **self.start,
            **{GRADIENT + name: torch.zeros_like(x) for name, x in self.start.items()},
            "rate": self.scale.new_zeros(()),
            "norm.scale": self.norm_scale,
            "norm.shift": self.norm_shift,
            COUNT: torch.zeros((), dtype=torch.long, device=self.scale.device),
        }

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Make the tokens of hidden states (B, T, D)."""
        step = self.by_head(self.step(hidden)).sigmoid()
        return {
            "keys": self.by_head(self.key(hidden)),
            "values": self.by_head(self.value(hidden)),
            "step": step * (self._config.learning_rate / self._config.rank),
        }
