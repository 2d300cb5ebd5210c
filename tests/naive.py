"""The naive run of transformers alone, one row, no cache, no padding, and padded rows to compare it with."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import strategies as st
from memwrite_specs.testing import Rows, padded_rows, query_batches
from support import FAMILIES, described, reader_only, without_params
from torch import Tensor

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.plugins.builtin.readers import PrefixReader

SLOTS = 3
POSITIONS = 64


@cache
def prefixed(family: str, attention: str) -> Memory:
    return reader_only(without_params(PrefixReader), described(family, attention))


@cache
def built(family: str, attention: str, writer: str, reader: str) -> Memory:
    model = {**FAMILIES[family], "dtype": "float64", "attention": attention}
    return Memory.from_config(
        {"backbone": model, "writer": {"name": writer}, "reader": {"name": reader}}
    )


def trainable(family: str, attention: str, checkpointing: bool) -> Memory:
    """A prefix memory in training mode."""
    memory = reader_only(
        without_params(PrefixReader), described(family, attention, trainable=True)
    ).train()
    if checkpointing:
        memory.model.gradient_checkpointing_enable()
    return memory


def memories(rows: int) -> MemoryState:
    draw = torch.Generator().manual_seed(7)
    values = torch.randn(rows, SLOTS, 32, dtype=torch.float64, generator=draw)
    spec = StateSpec("prefix", {"memory": (SLOTS, 32)}, dtype=torch.float64)
    return MemoryState(spec, {"memory": values})


def naive(memory: Memory, prefix: Tensor | None, ids: list[int]) -> Tensor:
    """Logits (slots + len(ids), V) of transformers' own forward."""
    embeddings = memory.backbone.embed(torch.tensor([ids], dtype=torch.int64))
    if prefix is not None:
        embeddings = torch.cat([prefix[None], embeddings], 1)
    if not embeddings.shape[1]:
        return embeddings.new_zeros(0, memory.backbone.info.vocab_size)
    logits: Tensor = memory.model(inputs_embeds=embeddings, use_cache=False).logits[0]
    return logits


def padded(rows: int | None = None, longest: int = 5) -> st.SearchStrategy[tuple[Rows, Tokens]]:
    """Draw what `padded_rows` does, of at most `longest` tokens."""
    return padded_rows(rows, longest)


def many() -> st.SearchStrategy[tuple[Rows, Tokens]]:
    """Draw what `query_batches` does, of at most five tokens."""
    return query_batches(5)
