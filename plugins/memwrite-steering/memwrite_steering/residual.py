"""Residual steering: the mean of hidden states behind positive texts, less that behind negative ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from memwrite.errors import InputError
from memwrite.modules.layers import chosen_layers
from memwrite.protocols import Backbone, Conditioning, ProjectionDeltas, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateKind, StateSpec
from memwrite_steering.config import NoParams, SteeringReaderConfig
from memwrite_steering.contrast import texts_of

STEERING = StateKind(
    "steering",
    {"positive": "L D", "negative": "L D", "positives": "", "negatives": ""},
    summary="sums of hidden states behind positive and negative texts, and their numbers",
)


class SteeringWriter(nn.Module):
    """Adds up what each layer gives at the last token of each text, positive and negative ones apart.

    Every text is read on its own. The state is a sum, so contexts may come in any order, and states can be added.

    Args:
        config: nothing can be set.
        backbone: the model that reads; never changed.
    """

    reserved_positions = 0

    def __init__(self, config: NoParams, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        self._backbone = backbone
        layers = chosen_layers((), info)
        shape = (info.layers, info.hidden_size)
        shapes = {"positive": shape, "negative": shape, "positives": (), "negatives": ()}
        self.spec = StateSpec(STEERING.name, shapes, layers, info.state_dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return sums of nothing."""
        return self.spec.zeros(batch_size, self._backbone.info.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Add the hidden states behind the texts of the context."""
        texts = texts_of(context)
        if texts is None:
            return WriteOutput(state)
        kept = {layer: _Keeping() for layer in self.spec.layers}
        self._backbone.forward(
            self._backbone.embed(texts.tokens.ids), lengths=texts.tokens.lengths, corrections=kept
        )
        hidden = torch.stack([texts.last(layer.left) for layer in kept.values()], 1)
        hidden = hidden.to(self.spec.dtype)
        ones, rows = torch.ones_like(hidden[:, 0, 0]), len(context.ids)
        added = {
            "positive": texts.sums(hidden, rows, True),
            "negative": texts.sums(hidden, rows, False),
            "positives": texts.sums(ones, rows, True),
            "negatives": texts.sums(ones, rows, False),
        }
        return WriteOutput(_added(state, added))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Add the sums."""
        return _added(first, second.tensors)


class SteeringReader(nn.Module):
    """Adds α v to what layers give, v being the mean behind positive texts less the mean behind negative ones.

    With `probed` only to hidden states that are nearer to the negative mean: a linear probe across the middle of the two.
    Without texts of one sign its mean is 0.

    Args:
        config: see `SteeringReaderConfig`.
        backbone: the model that reads; never changed.
        spec: of the states.

    Raises:
        ConfigError: the model has no such layer.
    """

    accepts = frozenset({STEERING.name})

    def __init__(self, config: SteeringReaderConfig, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        self.config = config
        self._width = backbone.info.hidden_size
        self._layers = chosen_layers(config.layers or (backbone.info.layers // 2,), backbone.info)

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Steer behind each of the layers.

        Raises:
            InputError: the state is of another model's layers or width.
        """
        layers, width = state.spec.shapes["positive"]
        if width != self._width or max(self._layers) >= layers:
            raise InputError(
                f"this memory is of {layers} layers of width {width}, but the model's have {self._width} and layer "
                f"{max(self._layers)} is steered: it was written for another model"
            )
        means = {}
        for name in ("positive", "negative"):
            means[name] = state[name] / state[f"{name}s"].clamp(min=1)[:, None, None]
        return Conditioning(
            corrections={
                layer: _Steering({n: t[:, layer] for n, t in means.items()}, self.config)
                for layer in self._layers
            }
        )


class _Keeping:
    """Keeps what a layer gives; a `ResidualAdapter`."""

    def __init__(self) -> None:
        self.left = torch.empty(0)

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {}

    def entering(self, hidden: Tensor) -> Tensor:
        return hidden

    def leaving(self, hidden: Tensor) -> Tensor:
        self.left = hidden
        return hidden

    def rows(self, index: Tensor) -> _Keeping:
        """Return an adapter of these rows."""
        return _Keeping()


class _Steering:
    """Adds one layer's vector to what it gives; a `ResidualAdapter`."""

    def __init__(self, means: Mapping[str, Tensor], config: SteeringReaderConfig) -> None:
        self._means, self._config = means, config

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {}

    def entering(self, hidden: Tensor) -> Tensor:
        return hidden

    def leaving(self, hidden: Tensor) -> Tensor:
        positive, negative = (self._means[name][:, None] for name in ("positive", "negative"))
        direction = positive - negative
        added = self._config.strength * direction
        if self._config.probed:
            wide = hidden.to(direction.dtype) - (positive + negative) / 2
            added = added * ((wide * direction).sum(-1, keepdim=True) < 0)
        return hidden.to(direction.dtype) + added

    def rows(self, index: Tensor) -> _Steering:
        """Return the adapter of these rows."""
        means = {name: mean[index.to(mean.device)] for name, mean in self._means.items()}
        return _Steering(means, self._config)


def _added(state: MemoryState, other: Mapping[str, Tensor]) -> MemoryState:
    tensors = {name: tensor + other[name] for name, tensor in state.tensors.items()}
    return MemoryState(state.spec, tensors)
