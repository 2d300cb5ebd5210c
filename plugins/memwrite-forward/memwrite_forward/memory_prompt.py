"""MemoryPrompt (arXiv 2402.15268): a small recurrent network behind a frozen model emits the vectors before the next text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite.utils.padding import real_first


@dataclass(frozen=True)
class MemoryPromptConfig:
    """Configures MemoryPrompt.

    Attributes:
        slots: m, memory vectors.
        segment: tokens per segment, read one after the other; by default a context is one segment.
        hidden: width of the MLP between the model and the LSTM.
        output: width of what the MLP hands to the LSTM.
        norm_weight: of the vectors' mean norm in the training loss; 0 for none.
        init_gain: gain of the MLP's start (Glorot and Bengio 2010); at the authors' value the first memories hardly differ.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 5
    segment: int | None = None
    hidden: int = 1024
    output: int = 1024
    norm_weight: float = 0.1
    init_gain: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("slots", "segment", "hidden", "output"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.norm_weight < float("inf"):
            raise ValueError(f"norm_weight must not be negative, got {self.norm_weight}")
        if not 0 < self.init_gain < float("inf"):
            raise ValueError(f"init_gain must be positive, got {self.init_gain}")


class MemoryPromptWriter(nn.Module):
    """Reads [memory; segment]; an MLP and an LSTM make the next memory of the last token's hidden state.

    The memory is the output of the LSTM, so that it is its hidden state as well; the cell state is the state's `latent`. A
    memory that has read nothing has no vector.

    Args:
        config: see `MemoryPromptConfig`.
        backbone: the model that reads; never changed.
    """

    def __init__(self, config: MemoryPromptConfig, backbone: Backbone) -> None:
        super().__init__()
        width, dtype = backbone.info.hidden_size, backbone.info.state_dtype
        self.config = config
        self._backbone = backbone
        self.reserved_positions = config.slots
        first = nn.Linear(width, config.hidden, dtype=dtype)
        second = nn.Linear(config.hidden, config.output, dtype=dtype)
        for layer in (first, second):
            nn.init.xavier_uniform_(layer.weight, config.init_gain)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(first, nn.ReLU(), second)
        self.lstm = nn.LSTMCell(config.output, config.slots * width, dtype=dtype)
        shape = (config.slots, width)
        shapes = {"memory": shape, "latent": shape, "mask": shape[:1]}
        self.spec = StateSpec("prefix", shapes, dtype=dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states without any vector."""
        return self.spec.zeros(batch_size, self.lstm.bias_hh.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Read the context segment by segment.

        Returns:
            The new state. Losses: "norm" (B,), in training mode where a weight is set: the mean norm of the vectors, over
            the segments of a row.
        """
        memory, cell, mask = state["memory"], state["latent"], state["mask"]
        norms: list[Tensor] = []
        length = context.ids.shape[1]
        width = self.config.segment or max(length, 1)
        for start in range(0, length, width):
            segment = context.columns(start, start + width)
            touched = segment.mask.any(1)
            hidden = self._last_hidden(memory, mask, segment)
            new, kept = self.lstm(self.mlp(hidden), (memory.flatten(1), cell.flatten(1)))
            rows = touched[:, None, None]
            memory = torch.where(rows, new.view_as(memory), memory)
            cell = torch.where(rows, kept.view_as(cell), cell)
            mask = mask | touched[:, None]
            norms.append(memory.norm(dim=-1).mean(1) * touched)
        tensors = {"memory": memory, "latent": cell, "mask": mask}
        written = MemoryState(self.spec, tensors)
        if not norms or not self.config.norm_weight or not self.training:
            return WriteOutput(written)
        segments = (-(-context.lengths // width)).clamp(min=1)
        return WriteOutput(
            written, {"norm": self.config.norm_weight * torch.stack(norms).sum(0) / segments}
        )

    def _last_hidden(self, memory: Tensor, mask: Tensor, segment: PackedTokens) -> Tensor:
        """Return the hidden state (B, D) of each row's last real token behind its memory, if it has one."""
        embeddings = self._backbone.embed(segment.ids)
        inputs = torch.cat([memory.to(embeddings.dtype), embeddings], 1)
        real = torch.cat([mask, segment.mask], 1)
        order, lengths = real_first(real), real.sum(1)
        packed = inputs.gather(1, order[..., None].expand(-1, -1, inputs.shape[-1]))
        hidden = self._backbone.forward(packed, lengths=lengths).hidden
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, (lengths - 1).clamp(min=0)].to(memory.dtype)
