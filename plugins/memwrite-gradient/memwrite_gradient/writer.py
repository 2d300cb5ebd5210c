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
from memwrite_gradient.blocks import OverlappingBlocks
from memwrite_gradient.compiled import compiled
from memwrite_gradient.config import GradientConfig
from memwrite_gradient.fast_weights import FastWeights
from memwrite_gradient.inner_optimizer import Adam, half_cosine, non_finite_rows
from memwrite_gradient.inner_step import InnerStep, backtrack, inexact_rows
from memwrite_gradient.lora import WriteLora
from memwrite_gradient.recompute import StepOutput, isolated_step


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
        self._compiled = compiled(InnerStep.run) if config.compile else None
        self.spec = StateSpec("prefix", shapes, dtype=dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return the learned start M₀, once per row."""
        return self._state(self.fast.start(batch_size))

    def _state(self, params: list[Tensor]) -> MemoryState:
        tensors = {"memory": self.controls.around_read(self.fast.project(params))}
        if "latent" in self.spec.shapes:
            tensors["latent"] = self.fast.pack(params)
        return MemoryState(self.spec, tensors)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Take K steps M ← M − η·clip(∂L/∂M), L being each row's mean cross-entropy over its own tokens.

        With `settled_weight` below 1, tokens that the model is confident of count for less in L.

        Returns:
            The new state. Losses: "reconstruction" (B,), L before the last step times its weight, if that is not
            0. Trace: "loss" (steps, B), before each step, in nats per token; "accuracy" (steps, B), the share of
            tokens that are the model's first choice, likewise.

        Raises:
            ConfigError: second order is set, but the model has attention that has no second derivative.
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
            context, params = context.clone(), self.fast.unpack(latent.clone())
            if not keep or self.config.order == "none":
                params = [tensor.detach() for tensor in params]
            params, reconstruction, trace = self._descend(params, context, keep)
        with torch.inference_mode(False), torch.set_grad_enabled(keep):
            losses = {} if reconstruction is None else {"reconstruction": reconstruction}
            return WriteOutput(self._state(params), losses, trace)

    def _descend(
        self, params: list[Tensor], context: PackedTokens, keep: bool
    ) -> tuple[list[Tensor], Tensor | None, dict[str, Tensor]]:
        """Return the params after all steps, the weighted reconstruction loss if it is to be trained on, and the trace."""
        embeddings = self._backbone.embed(context.ids)
        if not keep:
            embeddings = embeddings.detach()
        count = context.lengths.clamp(min=1)
        active = context.mask.any(1)
        loss_weight = self.config.reconstruction_weight if keep else 0.0
        optimizer = [Adam() for _ in params] if self.config.optimizer == "adam" else None
        losses, accuracies, reconstruction = [], [], None
        steps = self._draw_steps()
        previous: list[Tensor] | None = None
        for index in track(range(steps), "write"):
            if not active.any():
                break
            last = bool(loss_weight) and index == steps - 1
            step = InnerStep(self, context, active, self._lr_factor(index, steps), optimizer, last)
            start = [t if keep and t.requires_grad else t.detach().requires_grad_() for t in params]
            second = keep and self._is_second_order(index, steps)
            output = self._run(step, start, embeddings, second)
            if self.config.backtrack and not keep and previous is not None:
                start, output = backtrack(step, previous, start, embeddings, output)
            params, loss, margin = output
            if (wrong := non_finite_rows(loss, params)).any():
                # A loss that is not finite is what the step before led to.
                here = previous is None or bool(loss.isfinite().all())
                at, number = (start, index + 1) if here or previous is None else (previous, index)
                raise self._diverged(wrong, f"{number} of {steps}", at, embeddings, context)
            previous = start
            losses.append(loss.detach())
            accuracies.append(((margin > 0) & context.mask).sum(1) / count)
            active = active & inexact_rows(self.config, margin, context)
            if last:
                reconstruction = loss_weight * loss
            if not keep or self.config.order == "none":
                params = [tensor.detach() for tensor in params]
        return params, reconstruction, self._trace(losses, accuracies, context)

    def _run(
        self, step: InnerStep, params: list[Tensor], embeddings: Tensor, create_graph: bool
    ) -> StepOutput:
        if not create_graph or not (self.config.recompute or self.config.compile):
            return step.run(params, embeddings, create_graph)
        run = step.run if self._compiled is None else partial(self._compiled, step)
        return isolated_step(run, params, embeddings, self._weights(), self.config.recompute)

    def _diverged(
        self,
        wrong: Tensor,
        step: str,
        params: list[Tensor],
        embeddings: Tensor,
        context: PackedTokens,
    ) -> DivergenceError:
        """Make the error to raise where `step`, gone from `params`, went wrong in these rows."""
        params = [tensor.detach().requires_grad_() for tensor in params]
        nll, _ = self.reconstruct(params, embeddings.detach(), context)
        loss = (nll * context.mask).sum(1) / context.lengths.clamp(min=1)
        gradients = torch.autograd.grad(loss.sum(), params)
        norms = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)
        rows = wrong.nonzero().flatten().tolist()
        return DivergenceError(
            f"the write diverged at step {step} in row(s) {rows}: before it the loss was "
            f"{loss[rows[0]].item():.3g} and the norm of its gradient {norms[rows[0]].item():.3g}: use a smaller "
            f"writer.params.lr, set clip_norm, or backtrack=true",
            rows,
        )

    def _weights(self) -> list[Tensor]:
        """Return everything besides its params that a step's outcome depends on and that may be learned."""
        weights = (*self.parameters(), *self._backbone.parameters())
        return [weight for weight in weights if weight.requires_grad]

    def _draw_steps(self) -> int:
        max_steps = self.config.most_steps
        if max_steps is None or not self.training:
            return self.config.steps
        return int(torch.randint(self.config.steps, max_steps + 1, ()))

    def _is_second_order(self, step: int, steps: int) -> bool:
        count = self.config.second_steps or steps
        return self.config.order == "second" and step >= steps - count

    def step_sizes(self, count: int) -> Sequence[Tensor | float]:
        """Return the full step size of each of `count` params, as it is learned."""
        if self.log_lr is None:
            return [self.config.lr] * count
        size = self.log_lr.exp()
        return [size] * count if size.ndim == 0 else self.fast.unpack(size[None])

    def _lr_factor(self, step: int, steps: int) -> float:
        """Return the learning-rate multiplier of a step: with `decay`, a half cosine down to 0.05."""
        if not self.config.decay:
            return 1.0
        return half_cosine(step, steps)

    def reconstruct(
        self, params: Sequence[Tensor], embeddings: Tensor, context: PackedTokens
    ) -> tuple[Tensor, Tensor]:
        """Return for each token its negative log-likelihood given [memory; earlier tokens], and its margin over the
        best other token, in nats, (B, T) each.
        """
        memory = self.fast.project(params)
        tokens = context.ids.shape[1]
        blocks = OverlappingBlocks(tokens, self.config.window or tokens)
        prefix = self.controls.around_write(memory.repeat_interleave(blocks.count, 0))
        corrections = None if self.lora is None else self.lora.corrections()
        inputs = torch.cat([prefix.to(embeddings.dtype), blocks.cut(embeddings)], 1)
        hidden = self._backbone.forward(inputs, corrections=corrections).hidden
        hidden = hidden[:, prefix.shape[1] - 1 : -1]
        logits, ids = self._backbone.logits(hidden, self.head), blocks.cut(context.ids)
        nll = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        with torch.no_grad():
            top = logits.topk(2, dim=-1)
            own = logits.gather(-1, ids[..., None])[..., 0]
            first = top.indices[..., 0] == ids
            margin = own - torch.where(first, top.values[..., 1], top.values[..., 0])
        return blocks.join(nll), blocks.join(margin)

    def _trace(
        self, losses: list[Tensor], accuracies: list[Tensor], context: PackedTokens
    ) -> dict[str, Tensor]:
        empty = torch.zeros(0, context.ids.shape[0], device=context.ids.device)
        loss = torch.stack(losses) if losses else empty
        return {"loss": loss, "accuracy": torch.stack(accuracies) if accuracies else empty}
