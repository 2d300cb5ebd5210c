"""Memformer against its oracle, the authors' attention of slots, and the laws of its forgetting."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_forward import naive
from memwrite_forward.memformer import MemformerConfig, MemformerWriter, SlotAttention
from memwrite_specs.testing import MODELS
from safetensors.torch import load_file
from torch.nn import functional as F

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss

FILE = Path(__file__).parent / "data" / "slot_attention.safetensors"
ROWS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]


def build(**params: Any) -> tuple[Memory, MemformerWriter]:
    memory = Memory.from_config(
        {
            "backbone": {**MODELS["gpt2"], "dtype": "float64", "attention": "eager"},
            "writer": {"name": "memformer", "params": {"slots": 3, "heads": 2, **params}},
            "reader": {"name": "prefix"},
        }
    )
    assert isinstance(memory.writer, MemformerWriter)
    return memory, memory.writer


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_equals_the_oracle() -> None:
    memory, writer = build(segment=2)
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(ROWS)).state
        for row, ids in enumerate(ROWS):
            segments = [ids[start : start + 2] for start in range(0, len(ids), 2)]
            close(state["memory"][row], naive.slots(writer, memory.backbone, segments))


def test_slots_attend_as_the_authors_do() -> None:
    """In their later model, whose temperature is 1, and given that a slot's own value is itself."""
    tensors = load_file(FILE)
    slots, tokens, lengths = tensors["slots"], tensors["tokens"], tensors["lengths"]
    attention = SlotAttention(
        slots.shape[-1], MemformerConfig(heads=4, temperature=1.0), slots.dtype
    )
    attention.load_state_dict(
        {f"{name}.weight": tensors[name] for name in ("query", "key", "value")}
    )
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        close(attention(slots, tokens, mask), tensors["found"])


def test_no_slot_learns_of_another() -> None:
    """Given a segment's hidden states, a slot depends on itself and on them."""
    _, writer = build()
    torch.manual_seed(0)
    width = writer.forgetting.shape[1]
    slots, tokens = (torch.randn(1, n, width, dtype=torch.float64) for n in (3, 4))
    mask = torch.ones(1, 4, dtype=torch.bool)

    def written(slots: torch.Tensor) -> torch.Tensor:
        return writer.forgotten(writer.attention(slots, tokens, mask))

    jacobian = torch.autograd.functional.jacobian(written, slots)[0, :, :, 0]  # type: ignore[no-untyped-call]
    size = jacobian.abs().amax((1, 3))
    assert (size.diagonal() > 1e-6).all()
    assert torch.equal(size, size.diagonal().diag())


@settings(max_examples=8)
@given(st.integers(0, 2**31), st.floats(0.2, 3.0))
def test_what_is_not_renewed_is_forgotten(seed: int, length: float) -> None:
    """A slot that keeps its own value goes back to where it began, ever nearer; the faster, the longer the forgetting vector."""
    _, writer = build()
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(1, *writer.forgetting.shape, generator=generator, dtype=torch.float64)
    start = F.normalize(start, dim=-1)
    cosines: dict[float, list[torch.Tensor]] = {length: [], 2 * length: []}
    for size, seen in cosines.items():
        with torch.no_grad():
            writer.forgetting.copy_(size * F.normalize(writer.forgetting, dim=-1))
            origin, slots = writer.init(1)["memory"], start
            for _ in range(6):
                seen.append((slots * origin).sum(-1))
                slots = writer.forgotten(slots)
                close(slots.norm(dim=-1), torch.ones(1, 3, dtype=torch.float64))
            for _ in range(300):
                slots = writer.forgotten(slots)
        assert (slots - origin).abs().max() < 1e-9
        assert all((b > a - 1e-12).all() for a, b in pairwise(seen))
    for slow, fast in zip(*cosines.values(), strict=True):
        assert (fast > slow - 1e-12).all()


@settings(max_examples=10)
@given(st.lists(st.lists(st.integers(0, 257), max_size=5), min_size=1, max_size=3))
def test_neither_padding_nor_neighbours_matter(rows: list[list[int]]) -> None:
    memory, _ = build(segment=3)
    start = memory.write(Tokens.from_rows([[1, 2]] * len(rows))).state
    found = memory.write(Tokens.from_rows([*rows]), start).state["memory"]
    for row, real in enumerate(rows):
        alone = memory.write(Tokens.from_rows([real]), start.rows(slice(row, row + 1))).state
        close(found[row], alone["memory"][0])
        if not real:
            assert torch.equal(found[row], start["memory"][row])


def test_training_reaches_every_parameter() -> None:
    memory, writer = build(segment=2)
    memory.train()
    tokens = Tokens.from_rows(ROWS)
    training_loss(memory, Batch(tokens, tokens, tokens.ids)).loss.backward()
    for name, parameter in writer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"slots": 0}, "slots must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"init_std": 0.0}, "init_std must be positive"),
        ({"heads": 5}, "heads = 5 does not divide the model's width"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"writer.params.*{message}"):
        build(**params)
