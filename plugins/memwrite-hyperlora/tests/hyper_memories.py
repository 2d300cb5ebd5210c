"""Small memories for the tests of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memwrite import Memory, MemoryState

LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TEXTS = [
    "The boat is called Ava.",
    "Lunch is at one.",
    "a",
    "Nobody knows where the key of the boat house is.",
]


def made(
    writer: Mapping[str, Any],
    reader: Mapping[str, Any],
    dtype: str = "float64",
    attention: str = "eager",
    noise: float = 0.3,
    sizes: Mapping[str, Any] = LLAMA,
) -> Memory:
    """Make a memory of a random Llama; `noise` moves every weight, those that start with zeros too."""
    torch.manual_seed(0)
    memory = Memory.from_config(
        {
            "backbone": {
                "type": "llama",
                "params": dict(sizes),
                "dtype": dtype,
                "attention": attention,
            },
            "writer": writer,
            "reader": reader,
        }
    )
    for weight in (*memory.writer.parameters(), *memory.reader.parameters()):
        weight.data.add_(noise * torch.randn_like(weight))
    return memory


def adapter(params: Mapping[str, Any], reading: Mapping[str, Any], **options: Any) -> Memory:
    """Make a memory of Generative Adapter."""
    name = "generative-adapter"
    return made({"name": name, "params": params}, {"name": name, "params": reading}, **options)


@torch.no_grad()
def written(memory: Memory, texts: list[str]) -> MemoryState:
    """Write texts, one after the other, into one memory."""
    state = memory.writer.init(1)
    for text in texts:
        state = memory.write(text, state).state
    return state


@torch.no_grad()
def asked(memory: Memory, state: MemoryState, query: str = "Where is the key?") -> Tensor:
    """Return the logits of a query."""
    return memory.read(state, memory.encode(query, raw=True)).logits


@torch.no_grad()
def bare(memory: Memory, query: str = "Where is the key?") -> Tensor:
    """Return the logits of the model by itself, as it is now."""
    model = memory.backbone
    ids = memory.encode(query, raw=True).ids
    return model.logits(model.forward(model.embed(ids)).hidden)
