"""The forward writer: the memory is the model's own hidden states at M positions behind the context (RMT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.modules.memory_tokens import ControlTokens, learned
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_forward.config import ForwardConfig


class ForwardWriter(nn.Module):
    """Runs [write_start][M][write_end][context][write_start][M] K times; the last M hidden states become M.

    Bulatov et al. 2022 (arXiv 2207.06881), in the two-segment form that GradMem compares with.

    Args:
        config: see `ForwardConfig`.
        backbone: the model that writes; never changed.
    """

    def __init__(self, config: ForwardConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        width, dtype = info.hidden_size, info.state_dtype
        self.config = config
        self.reserved_positions = 2 * config.slots + 3 * config.control_tokens
        self._backbone = backbone
        self.slots = learned(config.slots, width, config.init_std, dtype)
        self.controls = ControlTokens(config.control_tokens, width, config.init_std, dtype)
        write, read = config.projection != "none", config.projection == "read-write"
        self.write_projection = nn.Linear(width, width, dtype=dtype) if write else None
        self.read_projection = nn.Linear(width, width, dtype=dtype) if read else None
        if self.read_projection is not None:
            nn.init.eye_(self.read_projection.weight)
            nn.init.zeros_(self.read_projection.bias)
        self.norm = nn.LayerNorm(width, dtype=dtype) if config.residual else None
        gate = None if config.gate is None else torch.full((width,), config.gate, dtype=dtype)
        self.gate = None if gate is None else nn.Parameter(gate)
        head = backbone.head.detach().to(dtype, copy=True)
        self.head = nn.Parameter(head) if config.write_head else None
        shapes = {"memory": (config.slots + 2 * config.control_tokens, width)}
        if config.control_tokens or read:
            shapes["latent"] = (config.slots, width)
        self.spec = StateSpec("prefix", shapes, dtype=dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return the learned start, once per row."""
        return self._state(self.slots.expand(batch_size, -1, -1).clone())

    def _state(self, slots: Tensor) -> MemoryState:
        projected = slots if self.read_projection is None else self.read_projection(slots)
        tensors = {"memory": self.controls.around_read(projected)}
        if "latent" in self.spec.shapes:
            tensors["latent"] = slots
        return MemoryState(self.spec, tensors)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Make K passes over each segment of the context.

        Returns:
            The new state. Losses: "reconstruction" (B,), where a weight is set and gradients are kept: the
            negative log-likelihood of a row's tokens given the memory, over the batch's mean number of tokens,
            averaged over the passes behind the first of each segment.
        """
        slots = state["latent"] if "latent" in self.spec.shapes else state["memory"]
        losses: list[Tensor] = []
        width = self.config.segment or max(context.ids.shape[1], 1)
        for start in range(0, context.ids.shape[1], width):
            slots = self._segment(slots, context.columns(start, start + width), losses)
        new = self._state(slots)
        if not losses:
            return WriteOutput(new)
        tokens = context.lengths.sum().clamp(min=1)
        total = torch.stack(losses).sum(0) * len(context.ids) / tokens / self.config.steps
        return WriteOutput(new, {"reconstruction": self.config.reconstruction_weight * total})

    def _segment(self, slots: Tensor, context: PackedTokens, losses: list[Tensor]) -> Tensor:
        """Return the slots after K passes, and append the summed reconstruction losses (B,) to `losses`."""
        embeddings = self._backbone.embed(context.ids)
        touched = context.mask.any(1)[:, None, None]
        with_loss = bool(self.config.reconstruction_weight) and torch.is_grad_enabled()
        for step in range(self.config.steps):
            out, hidden = self._pass(slots, embeddings, context)
            if with_loss and step:
                losses.append(self._reconstruction(hidden, context))
            if step and self.norm is not None:
                out = slots + self.norm(out)
            if self.gate is not None:
                out = self.slots + self.gate * out
            slots = torch.where(touched, out, slots)
        if with_loss:
            _, hidden = self._pass(slots, embeddings, context)
            losses.append(self._reconstruction(hidden, context))
        return slots

    def _pass(
        self, slots: Tensor, embeddings: Tensor, context: PackedTokens
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs at the last M positions, and the hidden states (B, T, D) that predict the context."""
        projected = slots if self.write_projection is None else self.write_projection(slots)
        before = self.controls.around_write(projected)
        after = before[:, : before.shape[1] - self.config.control_tokens]
        front, back = before.shape[1], after.shape[1]
        parts = torch.cat([before.to(embeddings.dtype), embeddings, after.to(embeddings.dtype)], 1)
        # Each row's second memory stands right behind its own last token, and padding behind that.
        length = embeddings.shape[1]
        position = torch.arange(front + length + back, device=parts.device).expand(len(parts), -1)
        end = front + context.lengths[:, None]
        source = torch.where(position < end, position, position + length - context.lengths[:, None])
        source = source.clamp(max=parts.shape[1] - 1)
        inputs = parts.gather(1, source[..., None].expand_as(parts))
        hidden = self._backbone.forward(inputs).hidden
        last = end + back - self.config.slots + torch.arange(self.config.slots, device=end.device)
        out = hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))
        return out.to(slots.dtype), hidden[:, front - 1 : front - 1 + length]

    def _reconstruction(self, hidden: Tensor, context: PackedTokens) -> Tensor:
        logits = self._backbone.logits(hidden, self.head)
        nll = F.cross_entropy(logits.transpose(1, 2), context.ids, reduction="none")
        return (nll * context.mask).sum(1)
