"""Memformer (arXiv 2010.06891): slots that attend to a segment, each for itself, and forget by being pulled to where they began."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.errors import ConfigError
from memwrite.modules.memory_tokens import learned
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec


@dataclass(frozen=True)
class MemformerConfig:
    """Configures Memformer.

    Attributes:
        slots: k, memory vectors.
        segment: tokens per segment, written one after the other; by default a context is one segment.
        heads: of the slots' attention; they divide the model's width.
        temperature: τ, which divides the attention's logits; below 1 it is sharper.
        init_std: standard deviation of the forgetting vectors at the start. The longer they are, the faster a slot forgets.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 8
    segment: int | None = None
    heads: int = 4
    temperature: float = 0.5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("slots", "segment", "heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("temperature", "init_std"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class SlotAttention(nn.Module):
    """Attention of each slot to itself and to the tokens of a segment, and to no other slot (the paper's section on writing).

    Args:
        width: D.
        config: see `MemformerConfig`.
        dtype: of the parameters.
    """

    def __init__(self, width: int, config: MemformerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self._heads = config.heads
        self._scale = (width // config.heads) ** -0.5 / config.temperature
        self.query = nn.Linear(width, width, bias=False, dtype=dtype)
        self.key = nn.Linear(width, width, bias=False, dtype=dtype)
        self.value = nn.Linear(width, width, bias=False, dtype=dtype)

    def forward(self, slots: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return what slots (B, k, D) find at themselves and at tokens (B, T, D), of which some (B, T) are real: (B, k, D).

        A slot's own value is itself; a token's is projected.
        """
        queries, own = self._split(self.query(slots)), self._split(self.key(slots))
        keys, values = self._split(self.key(tokens)), self._split(self.value(tokens))
        to_itself = (queries * own).sum(-1, keepdim=True)
        to_tokens = (queries @ keys.mT).masked_fill(~mask[:, None, None], -torch.inf)
        weights = (torch.cat([to_itself, to_tokens], -1) * self._scale).softmax(-1)
        found: Tensor = weights[..., :1] * self._split(slots) + weights[..., 1:] @ values
        return found.transpose(1, 2).flatten(2)

    def _split(self, tensor: Tensor) -> Tensor:
        """Cut (B, n, D) into heads (B, H, n, D / H)."""
        return tensor.view(*tensor.shape[:2], self._heads, -1).transpose(1, 2)


class MemformerWriter(nn.Module):
    """Reads [memory; segment]; each slot attends to the segment's last hidden states, then forgets a little.

    Args:
        config: see `MemformerConfig`.
        backbone: the model that reads; never changed.

    Raises:
        ConfigError: the heads do not divide the model's width.
    """

    def __init__(self, config: MemformerConfig, backbone: Backbone) -> None:
        super().__init__()
        width, dtype = backbone.info.hidden_size, backbone.info.state_dtype
        if width % config.heads:
            raise ConfigError(
                f"writer.params.heads = {config.heads} does not divide the model's width {width}"
            )
        self.config = config
        self._backbone = backbone
        self.reserved_positions = config.slots
        self.attention = SlotAttention(width, config, dtype)
        self.forgetting = learned(config.slots, width, config.init_std, dtype)
        self.spec = StateSpec("prefix", {"memory": (config.slots, width)}, dtype=dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return the forgetting vectors, of length 1, once per row."""
        slots = F.normalize(self.forgetting, dim=-1)
        return MemoryState(self.spec, {"memory": slots.expand(batch_size, -1, -1).clone()})

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Write the context segment by segment."""
        slots, length = state["memory"], context.ids.shape[1]
        width = self.config.segment or max(length, 1)
        for start in range(0, length, width):
            segment = context.columns(start, start + width)
            found = self.attention(slots, self._encoded(slots, segment), segment.mask)
            touched = segment.mask.any(1)[:, None, None]
            slots = torch.where(touched, self.forgotten(found), slots)
        return WriteOutput(MemoryState(self.spec, {"memory": slots}))

    def forgotten(self, slots: Tensor) -> Tensor:
        """Add the forgetting vectors to slots (B, k, D) and make their length 1 (biased memory normalization)."""
        return F.normalize(slots + self.forgetting, dim=-1)

    def _encoded(self, slots: Tensor, segment: PackedTokens) -> Tensor:
        """Return the last hidden states (B, T, D) of the segment, read behind the slots."""
        embeddings = self._backbone.embed(segment.ids)
        inputs = torch.cat([slots.to(embeddings.dtype), embeddings], 1)
        hidden = self._backbone.forward(inputs, lengths=slots.shape[1] + segment.lengths).hidden
        return hidden[:, slots.shape[1] :].to(slots.dtype)
