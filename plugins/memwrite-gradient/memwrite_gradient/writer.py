"""The gradient writer: the memory is what K gradient steps make of it (GradMem, arXiv 2603.13875, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.errors import ConfigError, DivergenceError
from memwrite.modules.memory_tokens import ControlTokens
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite.utils.progress import track
from memwrite_gradient.blocks import Pieces
from memwrite_gradient.compiled import compiled
from memwrite_gradient.config import GradientConfig
from memwrite_gradient.fast_weights import FastWeights
from memwrite_gradient.inner_optimizer import Adam, astray, clip, halfway
from memwrite_gradient.lora import WriteLora
from memwrite_gradient.recompute import apart

# In nats: by how much a token leads the runner-up. "Exact" keeps a distance that the rounding of another batch
# size, kernel or machine cannot undo; a token is settled when the next steps will hardly undo it.
EXACT, SETTLED = 0.1, 0.3
#: Of one step, until it leads to finite numbers.
HALVINGS = 20


class GradientWriter(nn.Module):
    """Fits M prefix vectors to a context, so that [M; context] predicts the context.

    Args:
        config: see `GradientConfig`.
        backbone: the model whose loss is descended; never changed.
    """

    def __init__(self, config: GradientConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        width, dtype = info.hidden_size, info.state_dtype
        self.config = config
        self.reserved_positions = config.slots + 2 * config.control_tokens
        self._backbone = backbone
        self.fast = FastWeights(config, width, dtype)
        self.controls = ControlTokens(config.control_tokens, width, config.init_std, dtype)
        numbers = self.fast.size if config.learned_lr == "each" else ()
        log_lr = torch.full(numbers, math.log(config.lr), dtype=dtype)
        self.log_lr = None if config.learned_lr == "none" else nn.Parameter(log_lr)
        head = backbone.head.detach().to(dtype, copy=True)
        self.head = nn.Parameter(head) if config.write_head else None
        rank, alpha = config.lora_rank, config.lora_alpha
        self.lora = WriteLora(info, rank, alpha, dtype) if rank else None
        shapes = {"memory": (self.reserved_positions, width)}
        if config.control_tokens or config.projection != "none":
            shapes["latent"] = self.fast.size
        self._compiled = compiled(self._step) if config.compile else None
        self.spec = StateSpec("prefix", shapes, dtype=dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """The learned start M₀, once per row."""
        return self._state(self.fast.start(batch_size))

    def _state(self, fast: list[Tensor]) -> MemoryState:
        tensors = {"memory": self.controls.around_read(self.fast.project(fast))}
        if "latent" in self.spec.shapes:
            tensors["latent"] = self.fast.pack(fast)
        return MemoryState(self.spec, tensors)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """K steps M ← M − η·clip(∂L/∂M), L being each row's mean cross-entropy over its own tokens.

        With `settled_weight` below 1, tokens that are safely right count for less in L.

        Returns:
            The new state. Losses: "reconstruction" (B,), L before the last step times its weight, if that is not
            0. Trace: "loss" (steps, B), before each step, in nats per token; "accuracy" (steps, B), the share of
            tokens that are the model's first choice, likewise.

        Raises:
            ConfigError: second order is wanted through attention that has no second derivative.
            DivergenceError: loss or variables are not finite, and with `backtrack` half steps did not help.
        """
        keep = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if keep and self.config.order == "second" and not self._backbone.info.double_backward:
            raise ConfigError(
                "second-order gradients need attention that can be differentiated twice: set "
                "backbone.attention=eager, or writer.params.order to first or none"
            )
        latent = state["latent"] if "latent" in self.spec.shapes else state["memory"]
        # Tensors made in inference mode cannot take part in autograd; clones made outside of it can.
        with torch.inference_mode(False), torch.enable_grad():
            context, fast = context.clone(), self.fast.unpack(latent.clone())
            if not keep or self.config.order == "none":
                fast = [tensor.detach() for tensor in fast]
            fast, written, trace = self._descend(fast, context, keep)
        with torch.inference_mode(False), torch.set_grad_enabled(keep):
            return WriteOutput(
                self._state(fast), {"reconstruction": written} if written is not None else {}, trace
            )

    def _descend(
        self, fast: list[Tensor], context: PackedTokens, keep: bool
    ) -> tuple[list[Tensor], Tensor | None, dict[str, Tensor]]:
        """The variables after all steps, the weighted reconstruction loss if it is wanted, and the trace."""
        embeddings = self._backbone.embed(context.ids)
        if not keep:
            embeddings = embeddings.detach()
        count = context.lengths.clamp(min=1)
        active = context.mask.any(1)
        wanted = self.config.reconstruction_weight if keep else 0.0
        losses, accuracies, written = [], [], None
        adams = [Adam() for _ in fast] if self.config.optimizer == "adam" else None
        steps = self._steps()
        before: list[Tensor] | None = None
        for step in track(range(steps), "write"):
            if not active.any():
                break
            second = keep and self._second(step, steps)
            last = bool(wanted) and step == steps - 1
            point = [t if keep and t.requires_grad else t.detach().requires_grad_() for t in fast]
            fixed = context, active, self._share(step, steps), adams, last
            if second and (self.config.recompute or self.config.compile):
                inner = partial(self._compiled or self._step, *fixed)
                fast, loss, lead = apart(
                    inner, point, embeddings, self._weights(), self.config.recompute
                )
            else:
                fast, loss, lead = self._step(*fixed, point, embeddings, second)
            halvings = HALVINGS if self.config.backtrack and not keep and before else 0
            while (wrong := astray(loss, fast)).any():
                if not halvings:
                    # A loss that is not finite is what the step before led to.
                    here = bool(loss.isfinite().all()) or before is None
                    at, number = (point, step + 1) if here else (before or point, step)
                    raise self._diverged(wrong, f"{number} of {steps}", at, embeddings, context)
                assert before is not None
                halvings -= 1
                point = halfway(before, point, wrong)
                fast, loss, lead = self._step(*fixed, point, embeddings, False)
            before = point
            losses.append(loss.detach())
            accuracies.append(((lead > 0) & context.mask).sum(1) / count)
            active = active & self._inexact(lead, context)
            if last:
                written = wanted * loss
            if not keep or self.config.order == "none":
                fast = [tensor.detach() for tensor in fast]
        return fast, written, self._trace(losses, accuracies, context)

    def _step(
        self,
        context: PackedTokens,
        active: Tensor,
        share: float,
        adams: list[Adam] | None,
        last: bool,
        point: list[Tensor],
        embeddings: Tensor,
        second: bool,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """One step from `point`: the new variables, L of each row (B,), and each token's lead (B, T).

        With `second` all of it can be differentiated; else L can be where this is the `last` step.
        """
        nll, lead = self._reconstruct(self.fast.project(point), embeddings, context)
        count = context.lengths.clamp(min=1)
        loss = (nll * context.mask).sum(1) / count
        weight = torch.where(lead > SETTLED, self.config.settled_weight, 1.0) * context.mask
        objective = ((nll * weight).sum(1) / count).sum()
        gradients = torch.autograd.grad(
            objective, point, create_graph=second, retain_graph=second or last
        )
        moved, moving = [], active & self._inexact(lead, context)
        sizes = self._sizes(len(point))
        for index, (start, gradient) in enumerate(zip(point, gradients, strict=True)):
            move = clip(gradient, self.config.clip_value, self.config.clip_norm)
            if adams is not None:
                move = adams[index](move)
            rows = moving.view(-1, *[1] * (start.ndim - 1))
            moved.append(torch.where(rows, start - share * sizes[index] * move, start))
        return moved, loss if second or last else loss.detach(), lead

    def _diverged(
        self,
        wrong: Tensor,
        step: str,
        point: list[Tensor],
        embeddings: Tensor,
        context: PackedTokens,
    ) -> DivergenceError:
        """What to raise where `step`, gone from `point`, went wrong in these rows."""
        point = [tensor.detach().requires_grad_() for tensor in point]
        nll, _ = self._reconstruct(self.fast.project(point), embeddings.detach(), context)
        loss = (nll * context.mask).sum(1) / context.lengths.clamp(min=1)
        gradients = torch.autograd.grad(loss.sum(), point)
        norms = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)
        rows = wrong.nonzero().flatten().tolist()
        return DivergenceError(
            f"the write diverged at step {step} in row(s) {rows}: before it the loss was "
            f"{loss[rows[0]].item():.3g} and the norm of its gradient {norms[rows[0]].item():.3g}: use a smaller "
            f"writer.params.lr, set clip_norm, or backtrack=true",
            rows,
        )

    def _inexact(self, lead: Tensor, context: PackedTokens) -> Tensor:
        """(B,) bool: whether a row, with these leads of its tokens, is still to be descended."""
        if not self.config.stop_when_exact:
            return torch.ones_like(context.lengths, dtype=torch.bool)
        return ((lead <= EXACT) & context.mask).any(1)

    def _weights(self) -> list[Tensor]:
        """Everything besides its variables that a step's outcome depends on and that may be learned."""
        every = (*self.parameters(), *self._backbone.parameters())
        return [weight for weight in every if weight.requires_grad]

    def _steps(self) -> int:
        most = self.config.most_steps
        if most is None or not self.training:
            return self.config.steps
        return int(torch.randint(self.config.steps, most + 1, ()))

    def _second(self, step: int, steps: int) -> bool:
        last = self.config.second_steps or steps
        return self.config.order == "second" and step >= steps - last

    def _sizes(self, count: int) -> Sequence[Tensor | float]:
        """The full step size of each variable, as it is learned."""
        if self.log_lr is None:
            return [self.config.lr] * count
        size = self.log_lr.exp()
        return [size] * count if size.ndim == 0 else self.fast.unpack(size[None])

    def _share(self, step: int, steps: int) -> float:
        """Of the full step size."""
        if not self.config.decay:
            return 1.0
        return 0.525 + 0.475 * math.cos(math.pi * step / steps)

    def _reconstruct(
        self,
        memory: Tensor,
        embeddings: Tensor,
        context: PackedTokens,
    ) -> tuple[Tensor, Tensor]:
        """For each token its negative log-likelihood given [memory; earlier tokens], and its lead over the best
        other token, in nats, (B, T) each.
        """
        tokens = context.ids.shape[1]
        pieces = Pieces(tokens, self.config.window or tokens)
        prefix = self.controls.around_write(memory.repeat_interleave(pieces.count, 0))
        corrections = None if self.lora is None else self.lora.corrections()
        inputs = torch.cat([prefix.to(embeddings.dtype), pieces.cut(embeddings)], 1)
        hidden = self._backbone.forward(inputs, corrections=corrections).hidden
        hidden = hidden[:, prefix.shape[1] - 1 : -1]
        logits, ids = self._backbone.logits(hidden, self.head), pieces.cut(context.ids)
        nll = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        with torch.no_grad():
            top = logits.topk(2, dim=-1)
            own = logits.gather(-1, ids[..., None])[..., 0]
            first = top.indices[..., 0] == ids
            lead = own - torch.where(first, top.values[..., 1], top.values[..., 0])
        return pieces.join(nll), pieces.join(lead)

    def _trace(
        self, losses: list[Tensor], accuracies: list[Tensor], context: PackedTokens
    ) -> dict[str, Tensor]:
        empty = torch.zeros(0, context.ids.shape[0], device=context.ids.device)
        loss = torch.stack(losses) if losses else empty
        return {"loss": loss, "accuracy": torch.stack(accuracies) if accuracies else empty}
