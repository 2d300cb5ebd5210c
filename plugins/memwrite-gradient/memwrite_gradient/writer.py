"""The gradient writer: the memory is what K gradient steps make of it (GradMem, arXiv 2603.13875, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.errors import ConfigError, DivergenceError
from memwrite.progress import track
from memwrite.protocols import Backbone, Written
from memwrite.state import MemoryState, StateSpec, Tokens
from memwrite_gradient.config import GradientConfig
from memwrite_gradient.steps import Adam, clip

# In nats: by how much a token leads the runner-up. "Exact" keeps a distance that the rounding of another batch
# size, kernel or machine cannot undo; a token is settled when the next steps will hardly undo it.
EXACT, SETTLED = 0.1, 0.3


class GradientWriter(nn.Module):
    """Fits M prefix vectors to a context, so that [M; context] predicts the context.

    Args:
        config: see `GradientConfig`.
        backbone: the model whose loss is descended; never changed.
    """

    def __init__(self, config: GradientConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        dtype = torch.promote_types(torch.float32, info.dtype)
        self.config = config
        self.reserve = config.slots
        self.spec = StateSpec("prefix", {"memory": (config.slots, info.hidden_size)}, dtype=dtype)
        self._backbone = backbone
        slots = torch.randn(config.slots, info.hidden_size, dtype=dtype) * config.init_std
        self.slots = nn.Parameter(slots)
        log_lr = torch.tensor(math.log(config.lr), dtype=dtype)
        self.log_lr = nn.Parameter(log_lr) if config.learned_lr else None

    def init(self, batch_size: int, /) -> MemoryState:
        """The learned start M₀, once per row."""
        return MemoryState(self.spec, {"memory": self.slots.expand(batch_size, -1, -1).clone()})

    def write(self, state: MemoryState, context: Tokens, /) -> Written:
        """K steps M ← M − η·clip(∂L/∂M), L being each row's mean cross-entropy over its own tokens.

        With `settled_weight` below 1, tokens that are safely right count for less in L.

        Returns:
            The new state. Trace: "loss" (steps, B), before each step, in nats per token; "accuracy" (steps, B),
            the share of tokens that are the model's first choice, likewise.

        Raises:
            ConfigError: second order is wanted through attention that has no second derivative.
            DivergenceError: the loss is not finite.
        """
        keep = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if keep and self.config.order == "second" and not self._backbone.info.double_backward:
            raise ConfigError(
                "second-order gradients need attention that can be differentiated twice: set "
                "backbone.attention=eager, or writer.params.order to first or none"
            )
        # Tensors made in inference mode cannot take part in autograd; clones made outside of it can.
        with torch.inference_mode(False), torch.enable_grad():
            context, memory = context.packed().clone(), state["memory"].clone()
            memory, trace = self._descend(memory if keep else memory.detach(), context, keep)
        return Written(MemoryState(self.spec, {"memory": memory}), trace=trace)

    def _descend(
        self, memory: Tensor, context: Tokens, keep: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        embeddings = self._backbone.embed(context.ids)
        if not keep:
            embeddings = embeddings.detach()
        active = context.mask.any(1)
        losses, accuracies = [], []
        adam = Adam() if self.config.optimizer == "adam" else None
        for step in track(range(self.config.steps), "write"):
            if not active.any():
                break
            second = keep and self._second(step)
            point = memory if second and memory.requires_grad else memory.detach().requires_grad_()
            nll, lead = self._reconstruct(point, embeddings, context)
            count = context.lengths.clamp(min=1)
            losses.append((nll.detach() * context.mask).sum(1) / count)
            accuracies.append(((lead > 0) & context.mask).sum(1) / count)
            if self.config.stop_when_exact:
                active = active & ((lead <= EXACT) & context.mask).any(1)
            weight = torch.where(lead > SETTLED, self.config.settled_weight, 1.0) * context.mask
            objective = ((nll * weight).sum(1) / count).sum()
            gradient = torch.autograd.grad(objective, point, create_graph=second)[0]
            gradient = clip(gradient, self.config.clip_value, self.config.clip_norm)
            if adam is not None:
                gradient = adam(gradient)
            start = point if second else memory
            moved = start - self._step_size(step) * gradient
            memory = torch.where(active[:, None, None], moved, start)
            if not keep or self.config.order == "none":
                memory = memory.detach()
        return memory, self._trace(losses, accuracies, context)

    def _second(self, step: int) -> bool:
        last = self.config.second_steps or self.config.steps
        return self.config.order == "second" and step >= self.config.steps - last

    def _step_size(self, step: int) -> Tensor | float:
        size = self.config.lr if self.log_lr is None else self.log_lr.exp()
        if self.config.decay:
            size = size * (0.525 + 0.475 * math.cos(math.pi * step / self.config.steps))
        return size

    def _reconstruct(
        self, memory: Tensor, embeddings: Tensor, context: Tokens
    ) -> tuple[Tensor, Tensor]:
        """For each token its negative log-likelihood given [memory; earlier tokens], and its lead over the best
        other token, in nats, (B, T) each.
        """
        slots, length = memory.shape[1], context.ids.shape[1]
        inputs = torch.cat([memory.to(embeddings.dtype), embeddings[:, : length - 1]], 1)
        hidden = self._backbone.forward(inputs).hidden[:, slots - 1 :]
        logits = self._backbone.logits(hidden)
        nll = F.cross_entropy(logits.transpose(1, 2), context.ids, reduction="none")
        with torch.no_grad():
            top = logits.topk(2, dim=-1)
            own = logits.gather(-1, context.ids[..., None])[..., 0]
            first = top.indices[..., 0] == context.ids
            lead = own - torch.where(first, top.values[..., 1], top.values[..., 0])
        return nll, lead

    def _trace(
        self, losses: list[Tensor], accuracies: list[Tensor], context: Tokens
    ) -> dict[str, Tensor]:
        empty = torch.zeros(0, context.ids.shape[0], device=context.ids.device)
        loss = torch.stack(losses) if losses else empty
        if not loss.isfinite().all():
            step, row = (~loss.isfinite()).nonzero()[0].tolist()
            before = loss[step - 1, row].item() if step else float("nan")
            raise DivergenceError(
                f"the write diverged at step {step} of {self.config.steps} in row {row} (loss before it "
                f"{before:.3g}): use a smaller writer.params.lr or set clip_norm"
            )
        return {"loss": loss, "accuracy": torch.stack(accuracies) if accuracies else empty}
