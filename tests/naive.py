"""The naive run of transformers alone, one row, no cache, no padding, and padded rows to compare it with."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from support import FAMILIES, Lists, described, reader_only, without_params
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


@st.composite
def padded(draw: Any, rows: int | None = None, longest: int = 5) -> tuple[Lists, Tokens]:
    """Rows of tokens, and the same with padding of any id left, right and between."""
    count = draw(st.integers(1, 3)) if rows is None else rows
    tokens = st.lists(st.integers(0, 257), max_size=longest)
    lists = draw(st.lists(tokens, min_size=count, max_size=count).filter(any))
    width = max(map(len, lists)) + draw(st.integers(0, 2))
    ids = torch.full((count, width), draw(st.integers(0, 257)))
    mask = torch.zeros(count, width, dtype=torch.bool)
    for row, real in enumerate(lists):
        columns = st.sets(st.integers(0, width - 1), min_size=len(real), max_size=len(real))
        places = sorted(draw(columns))
        ids[row, places] = torch.tensor(real, dtype=torch.int64)
        mask[row, places] = True
    return lists, Tokens(ids, mask)


@st.composite
def many(draw: Any) -> tuple[Lists, Tokens]:
    """Queries (B, Q, T), their B·Q rows of tokens beside them."""
    batch, each = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    lists, flat = draw(padded(batch * each))
    return lists, flat.map(lambda tensor: tensor.reshape(batch, each, -1))
