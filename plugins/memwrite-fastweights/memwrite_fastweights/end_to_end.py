"""TTT-E2E (arXiv 2512.23675) with low-rank weights: test-time training on the model's own task, chunk by chunk.

The paper trains whole MLPs of the last quarter of the layers on the next-token loss of each chunk of the context,

    W ← W − lr · clip₁(∇_W mean of −ln p(token | tokens before it; W)),

and their start, and the model, on the loss after that. Here W is a low-rank change of the frozen model's MLPs, s·B A for each
projection, so that the state stays small, and its start is what is learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.errors import ConfigError
from memwrite.modules.layers import chosen_layers
from memwrite.modules.low_rank import LowRank, stacked_factors
from memwrite.protocols import Backbone, ProjectionDeltas, StaticAdapter, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_fastweights.config import EndToEndConfig


class EndToEndWriter(nn.Module):
    """Descends the next-token loss of one chunk of tokens after another, by low-rank weights of MLPs.

    A chunk is read behind the chunk before it, and the first behind the token that opens a text. Every write is a text of
    its own, and its last chunk may be short, so that all of it is in the state.

    Args:
        config: see `EndToEndConfig`.
        backbone: the model whose loss is descended; never changed.

    Raises:
        ConfigError: the backbone has no such layer or projection.
    """

    reserved_positions = 1

    def __init__(self, config: EndToEndConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        last = list(range(info.layers - max(1, info.layers // 4), info.layers))
        layers = chosen_layers(config.layers or last, info)
        self._config, self._backbone = config, backbone
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        for name in config.projections:
            outputs, inputs = backbone.projection(layers[0], name).shape
            self.A[name], self.B[name] = stacked_factors(
                len(layers), outputs, inputs, config.rank, info.state_dtype
            )
        shapes = {name: tuple(start.shape) for name, start in self._starts().items()}
        self.spec = StateSpec("lowrank", shapes, layers, info.state_dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return the learned start, once per row."""
        tensors = {n: x[None].repeat(batch_size, 1, 1, 1) for n, x in self._starts().items()}
        return MemoryState(self.spec, tensors)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Take one step for every chunk of the context.

        Returns:
            The new state. Trace: "loss" (1, B), of every token before the step of its chunk, in nats per token.

        Raises:
            ConfigError: gradients are to go through the steps, but the model's attention has no second derivative.
        """
        keep = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if keep and not self._backbone.info.double_backward:
            raise ConfigError(
                "training this writer differentiates its steps, which needs attention that can be differentiated "
                "twice: set backbone.attention=eager"
            )
        total = torch.zeros(len(context.ids), device=context.ids.device)
        # Tensors made in inference mode cannot take part in autograd; clones made outside of it can.
        with torch.inference_mode(False), torch.enable_grad():
            tensors = {name: x.clone() for name, x in state.tensors.items()}
            context = context.clone()
            for start in range(0, context.ids.shape[1], self._config.chunk):
                tensors, nll = self._step(tensors, context, start, keep)
                total = total + nll
        trace = {"loss": (total / context.lengths.clamp(min=1))[None]}
        return WriteOutput(MemoryState(self.spec, tensors), {}, trace)

    def _starts(self) -> dict[str, Tensor]:
        sides = {"A": self.A, "B": self.B}
        return {f"{side}.{name}": x for side, parts in sides.items() for name, x in parts.items()}

    def _step(
        self, tensors: dict[str, Tensor], context: PackedTokens, start: int, keep: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the weights after the chunk that begins with token `start`, and −ln p of the chunk (B,) before."""
        if not keep:
            tensors = {name: x.detach() for name, x in tensors.items()}
        tensors = {n: x if x.requires_grad else x.requires_grad_() for n, x in tensors.items()}
        stop = min(start + self._config.chunk, context.ids.shape[1])
        real = context.mask[:, start:stop]
        nll = (self._losses(tensors, context, start, stop) * real).sum(1)
        loss = nll / real.sum(1).clamp(min=1)
        slopes = torch.autograd.grad(loss.sum(), list(tensors.values()), create_graph=keep)
        scale = _clip(slopes, self._config.clip) * self._config.learning_rate
        after = {
            name: x - scale.reshape(-1, 1, 1, 1) * slope
            for (name, x), slope in zip(tensors.items(), slopes, strict=True)
        }
        return after if keep else {n: x.detach() for n, x in after.items()}, nll.detach()

    def _losses(
        self, tensors: Mapping[str, Tensor], context: PackedTokens, start: int, stop: int
    ) -> Tensor:
        """Return −ln p of the tokens start..stop-1 (B, stop − start)."""
        begin = max(0, start - self._config.chunk)
        opening = torch.full_like(context.ids[:, :1], self._backbone.info.bos_id)
        before = torch.cat([opening, context.ids], 1)[:, begin:stop]
        output = self._backbone.forward(
            self._backbone.embed(before), corrections=self._corrections(tensors)
        )
        logits = self._backbone.logits(output.hidden[:, start - begin :])
        ids = context.ids[:, start:stop]
        return F.cross_entropy(logits.mT, ids, reduction="none")

    def _corrections(self, tensors: Mapping[str, Tensor]) -> dict[int, StaticAdapter]:
        scale = self._config.alpha / self._config.rank
        return {
            layer: StaticAdapter({n: x[:, i] for n, x in tensors.items()}, partial(_deltas, scale))
            for i, layer in enumerate(self.spec.layers)
        }


def _deltas(scale: float, tensors: Mapping[str, Tensor], _: Tensor) -> ProjectionDeltas:
    """Return s·B A of every projection."""
    names = (name.removeprefix("A.") for name in tensors if name.startswith("A."))
    return {name: LowRank(tensors["A." + name], tensors["B." + name], scale) for name in names}


def _clip(slopes: Sequence[Tensor], most: float) -> Tensor:
    """Return what makes each row's gradients, together, no longer than `most`, (B,)."""
    square = sum(
        (x.flatten(1).square().sum(1) for x in slopes), torch.zeros_like(slopes[0][:, 0, 0, 0])
    )
    # The root has no slope at 0, which is what rows without tokens have.
    length = torch.where(square > 0, square, 1).sqrt()
    return (most / length).clamp(max=1)
