"""MAC, a memory of amortized contexts (Tack et al. 2024, arXiv 2403.04317): a bank of a few vectors of every document."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memwrite.modules.memory_tokens import learned
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateKind, StateSpec
from memwrite_compress.config import CompressionConfig
from memwrite_compress.tokens import even_segments, last_hidden, lora_of

BANK = StateKind(
    "bank",
    {"memory": "M D", "mask": "M"},
    dtypes={"mask": torch.bool},
    summary="vectors without an order, of which every position looks up its part; it grows with what is written",
)


class MacWriter(nn.Module):
    """Keeps of every segment the last hidden states of m tokens behind it, in a bank that grows.

    A segment is read by itself, and entries stand in the order of their first number: a bank does not say in which order
    its contexts came.

    Args:
        config: see `CompressionConfig`.
        backbone: the model that amortizes; never changed.
    """

    def __init__(self, config: CompressionConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        self.config = config
        self._backbone = backbone
        self.tokens = learned(config.slots, info.hidden_size, config.init_std, info.state_dtype)
        self.lora = lora_of(config, backbone)
        self.spec = self._spec(0)
        self.reserved_positions = config.slots

    def _spec(self, slots: int) -> StateSpec:
        width, dtype = self._backbone.info.hidden_size, self._backbone.info.state_dtype
        shapes = {"memory": (slots, width), "mask": (slots,)}
        return StateSpec(BANK.name, shapes, dtype=dtype, bounded=False)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return empty banks."""
        return self.spec.zeros(batch_size, self.tokens.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Add an entry for each segment of the context, as few and as even as there must be."""
        parts = [(state["memory"], state["mask"])]
        for segment in even_segments(context, self.config.segment):
            text = self._backbone.embed(segment.ids), segment.mask
            new = last_hidden(self._backbone, self.lora, self.tokens, [text])
            read = segment.mask.any(1, keepdim=True).expand(-1, self.config.slots)
            parts.append((new.to(self.spec.dtype), read))
        return WriteOutput(self._bank(parts))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Return a bank with the entries of both."""
        return self._bank([(state["memory"], state["mask"]) for state in (first, second)])

    def _bank(self, parts: list[tuple[Tensor, Tensor]]) -> MemoryState:
        """Return the bank of entries (B, e·m, D), of which some (B, e·m) are real."""
        memory, mask = (torch.cat(column, 1) for column in zip(*parts, strict=True))
        rows, _, width = memory.shape
        entries = memory.reshape(rows, -1, self.config.slots, width)
        real = mask[:, :: self.config.slots]
        order = entries[:, :, 0, 0].masked_fill(~real, torch.inf).argsort(dim=1, stable=True)
        count = real.sum(1)
        order = order[:, : int(count.max()) if rows else 0]
        kept = torch.arange(order.shape[1], device=order.device) < count[:, None]
        entries = entries.gather(1, order[..., None, None].expand(-1, -1, *entries.shape[2:]))
        memory = (entries * kept[..., None, None]).flatten(1, 2)
        mask = kept.repeat_interleave(self.config.slots, 1)
        return MemoryState(self._spec(memory.shape[1]), {"memory": memory, "mask": mask})
