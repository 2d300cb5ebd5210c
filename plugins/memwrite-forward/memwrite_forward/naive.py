"""The oracles: one example, no batch, no padding, no options, in loops a student can read."""

from __future__ import annotations

import torch
from torch import Tensor

from memwrite.protocols import Backbone
from memwrite_forward.memformer import MemformerWriter
from memwrite_forward.memory_prompt import MemoryPromptWriter


def write(
    backbone: Backbone, memory: Tensor, ids: list[int], steps: int, gate: Tensor | None = None
) -> Tensor:
    """Write one context into one memory (M, D), by RMT's equation 2; with a gate (D,) the memory is the learned start."""
    context, start = backbone.embed(torch.tensor([ids], dtype=torch.int64)), memory
    for _ in range(steps):
        inputs = torch.cat([memory[None], context, memory[None]], dim=1)
        memory = backbone.forward(inputs).hidden[0, -len(memory) :]
        if gate is not None:
            memory = start + gate * memory
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


def slots(writer: MemformerWriter, backbone: Backbone, segments: list[list[int]]) -> Tensor:
    """Return Memformer's slots (k, D) after the segments, one slot, head and token at a time."""
    attention, config = writer.attention, writer.config
    w_q, w_k, w_v = attention.query.weight, attention.key.weight, attention.value.weight
    size = w_q.shape[0] // config.heads
    memory = torch.stack([vector / vector.norm() for vector in writer.forgetting])
    for ids in segments:
        embedded = backbone.embed(torch.tensor([ids], dtype=torch.int64))
        tokens = backbone.forward(torch.cat([memory[None], embedded], 1)).hidden[0, len(memory) :]
        found = torch.zeros_like(memory)
        for number, slot in enumerate(memory):
            for head in range(config.heads):
                part = slice(head * size, (head + 1) * size)
                keys = [w_k @ slot, *(w_k @ token for token in tokens)]
                values = [slot, *(w_v @ token for token in tokens)]
                logits = [(w_q @ slot)[part] @ key[part] / size**0.5 for key in keys]
                weights = [(logit / config.temperature).exp() for logit in logits]
                for weight, value in zip(weights, values, strict=True):
                    found[number, part] += weight / sum(weights) * value[part]
        biased = found + writer.forgetting
        memory = torch.stack([vector / vector.norm() for vector in biased])
    return memory
