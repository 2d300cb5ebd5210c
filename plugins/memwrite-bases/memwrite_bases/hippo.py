"""HiPPO-LegS (Gu et al. 2020, arXiv 2008.07669): all that was read, as polynomials of the time from its first token to its last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from memwrite.inference import online
from memwrite.modules.layers import chosen_layers
from memwrite.protocols import Backbone, Granularity, LayerInput, ScanOutput, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec, TensorSpec, matrix_recall
from memwrite_bases.legendre import integrals, rescaled

#: Tokens whose reads are computed together.
CHUNK = 32


@dataclass(frozen=True)
class HippoConfig:
    """Configures HiPPO-LegS.

    Attributes:
        order: N, polynomials of degree 0 to N − 1 for each channel.
        value_width: Dv, channels of each head.
        heads: H, each with its own channels and queries; their reads are concatenated.
        layers: of the backbone, from 0; by default all of them.

    Raises:
        ValueError: a value is out of range.
    """

    order: int = 16
    value_width: int = 16
    heads: int = 1
    layers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("order", "value_width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(set(self.layers)) < len(self.layers) or any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers must be different numbers from 0 on, got {self.layers}")


class HippoWriter(nn.Module):
    """Projects channels of each layer's hidden states, as functions of time, on Legendre polynomials.

    An `OnlineWriter`. A channel of k tokens is a function on [0, 1] that is constant on each of k equal pieces. S holds its
    coefficients on g₀, ..., gₙ₋₁, so that S (g₀(x), ..., gₙ₋₁(x)) is about what was read at the place x; how many tokens it
    stands for is in the state as well.

    Args:
        config: see `HippoConfig`.
        backbone: whose layers are written from.

    Raises:
        ConfigError: the backbone has no such layer.
    """

    reserved_positions = 0

    def __init__(self, config: HippoConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        layers = chosen_layers(config.layers, info)
        self.config = config
        self._backbone = backbone
        shape = (len(layers), config.heads, config.value_width, config.order)
        tensors = {"S": TensorSpec(shape), "latent.tokens": TensorSpec(shape[:1], torch.int64)}
        self.spec = StateSpec("matrix", tensors, layers, info.state_dtype)
        channels = config.heads * config.value_width
        self.values = nn.ModuleDict(
            {
                str(layer): nn.Linear(
                    info.hidden_size, channels, bias=False, dtype=info.state_dtype
                )
                for layer in layers
            }
        )

    @property
    def granularity(self) -> Granularity:
        """Return that tokens are written one by one."""
        return "token"

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states of zeros."""
        return self.spec.zeros(batch_size, next(self.parameters()).device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Read `context` without any reads of the state, and write it."""
        return online.run(self._backbone, self, None, context, state).written

    def scan(self, step: LayerInput, state: Mapping[str, Tensor], /, *, write: bool) -> ScanOutput:
        """See `OnlineWriter.scan`; a token reads before it is written."""
        queries = step.queries
        if not write:
            return ScanOutput(None if queries is None else matrix_recall(state, queries), state)
        hidden = step.hidden.to(self.spec.dtype)
        channels: Tensor = self.values[str(step.layer)](hidden)
        values = channels.view(*channels.shape[:2], self.config.heads, -1)
        real = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        mask = real if step.mask is None else step.mask
        reads, after, tokens = scan(queries, values, mask, state["S"], state["latent.tokens"])
        return ScanOutput(reads, {"S": after, "latent.tokens": tokens})


def scan(
    queries: Tensor | None, values: Tensor, mask: Tensor, state: Tensor, tokens: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Read and write tokens one after the other, many at once.

    Between tokens the differential equation of LegS, t dc/dt = −A c + B f, is solved exactly for a signal that is constant
    for the time of a token (zero-order hold), which makes the coefficients those of the projection itself.

    Args:
        queries: (B, T, H, N), or None where nobody reads.
        values: (B, T, H, Dv).
        mask: (B, T), which are real; real ones come first.
        state: S (B, H, Dv, N).
        tokens: (B,) int64, how many tokens S stands for.

    Returns:
        What the queries found before their tokens were written (B, T, H, Dv), S and `tokens` after all of them.
    """
    if queries is None:
        return None, *_written(values, mask, state, tokens)
    reads = [torch.zeros_like(values[:, :0])]
    for start in range(0, values.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        reads.append(_read(queries[:, part], values[:, part], state, tokens))
        state, tokens = _written(values[:, part], mask[:, part], state, tokens)
    return torch.cat(reads, 1), state, tokens


def _written(values: Tensor, mask: Tensor, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return S and the number of tokens after those of `values` that are real."""
    after = tokens + mask.sum(1)
    # The edges of padding lie at the end of time, so that it weighs nothing.
    steps = torch.arange(values.shape[1] + 1, device=values.device)
    edges = _places(tokens[:, None] + steps, after[:, None])
    weights = integrals(state.shape[-1], edges).diff(dim=1).to(state.dtype)
    moved = rescaled(state.shape[-1], _places(tokens, after)).to(state.dtype)
    new = torch.einsum("bthv,btn->bhvn", values, weights)
    return torch.einsum("bhvn,bmn->bhvm", state, moved) + new, after


def _read(queries: Tensor, values: Tensor, state: Tensor, tokens: Tensor) -> Tensor:
    """Return what the query of each token finds in S and in the tokens before it: (B, T, H, Dv)."""
    order, dtype = state.shape[-1], state.dtype
    before = tokens[:, None] + torch.arange(values.shape[1], device=values.device)
    edges = tokens[:, None] + torch.arange(values.shape[1] + 1, device=values.device)
    # To the query of each token its own edges (B, T, T + 1): those of later tokens lie at the end of time.
    seen = integrals(order, _places(edges[:, None], before[..., None])).to(dtype)
    weights = torch.einsum("btjn,bthn->bthj", seen, queries).diff(dim=-1)
    moved = rescaled(order, _places(tokens[:, None], before)).to(dtype)
    at_first = torch.einsum("btmn,bthm->bthn", moved, queries)
    return torch.einsum("bhvn,bthn->bthv", state, at_first) + torch.einsum(
        "bthj,bjhv->bthv", weights, values
    )


def _places(tokens: Tensor, total: Tensor) -> Tensor:
    """Return where tokens lie on [0, 1] when `total` have been read, in float64: at 1, if not before."""
    places = tokens.double() / total.double()
    return places.nan_to_num(1.0, posinf=1.0).clamp(max=1)
