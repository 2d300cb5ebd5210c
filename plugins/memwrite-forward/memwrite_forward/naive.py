"""The oracles: one example, no batch, no padding, no options, in loops a student can read."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.protocols import Backbone
from memwrite_forward.memory_prompt import MemoryPromptWriter


def write(backbone: Backbone, memory: Tensor, ids: list[int], steps: int) -> Tensor:
    """Write one context into one memory (M, D), by RMT's equation 2."""
    context = backbone.embed(torch.tensor([ids], dtype=torch.int64))
    for _ in range(steps):
        inputs = torch.cat([memory[None], context, memory[None]], dim=1)
        memory = backbone.forward(inputs).hidden[0, -len(memory) :]
    return memory


def prompt(
    writer: MemoryPromptWriter, backbone: Backbone, segments: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Return MemoryPrompt's vectors (m, D) and cell state (m, D) after the segments, the first read without any vector."""
    w, lstm = dict(writer.mlp.named_parameters()), writer.lstm
    memory = cell = torch.zeros(writer.spec.shapes["memory"], dtype=writer.spec.dtype)
    for number, ids in enumerate(segments):
        inputs = backbone.embed(torch.tensor([ids], dtype=torch.int64))
        if number:
            inputs = torch.cat([memory[None], inputs], 1)
        last = backbone.forward(inputs).hidden[0, -1]
        x = w["2.weight"] @ (w["0.weight"] @ last + w["0.bias"]).clamp(min=0) + w["2.bias"]
        gates = lstm.weight_ih @ x + lstm.bias_ih + lstm.weight_hh @ memory.flatten() + lstm.bias_hh
        enter, forget, new, leave = gates.view(4, *memory.shape)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        memory = leave.sigmoid() * cell.tanh()
    return memory, cell
