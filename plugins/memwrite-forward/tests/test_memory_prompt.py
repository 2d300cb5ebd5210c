"""MemoryPrompt against its oracle and its authors' code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_forward import naive
from memwrite_forward.memory_prompt import MemoryPromptWriter
from memwrite_specs.testing import MODELS
from safetensors import safe_open

from memwrite import Memory, MemoryState, Tokens
from memwrite.errors import ConfigError
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss

FILE = Path(__file__).parent / "data" / "memory_prompt.safetensors"
ROWS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]


def build(backbone: dict[str, Any] | None = None, **params: Any) -> Memory:
    sizes = {"slots": 3, "hidden": 6, "output": 5, "init_gain": 1.0}
    return Memory.from_config(
        {
            "backbone": {**(backbone or MODELS["gpt2"]), "dtype": "float64", "attention": "eager"},
            "writer": {"name": "memory-prompt", "params": sizes | params},
            "reader": {"name": "prefix"},
        }
    )


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_equals_the_authors_code() -> None:
    """Turn by turn, in a batch whose rows end in different places; the reads as well."""
    with safe_open(FILE, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        sizes = json.loads(file.metadata()["sizes"])
    model = {"type": "llama", "params": sizes, "tokenizer": "characters"}
    memory = build(model, slots=3, hidden=12, output=10)
    memory.model.load_state_dict(
        {key: t for key, t in tensors.items() if key.startswith(("model.", "lm_head."))}
    )
    memory.writer.load_state_dict(
        {key: t for key, t in tensors.items() if key.startswith(("mlp.", "lstm."))}
    )
    state = memory.writer.init(2)
    for turn in range(3):
        ids, lengths = tensors[f"segment.{turn}"], tensors[f"lengths.{turn}"]
        tokens = Tokens(ids, torch.arange(ids.shape[1]) < lengths[:, None])
        logits = memory.read(state, tokens).logits[torch.arange(2), lengths - 1]
        state = memory.write(tokens, state).state
        for found, name in (
            (state["memory"], "memory"),
            (state["latent"], "cell"),
            (logits, "logits"),
        ):
            expected = tensors[f"{name}.{turn}"]
            bar = 1e-5 * float(expected.abs().max())  # Llama's norms are float32 inside
            torch.testing.assert_close(found, expected, rtol=0, atol=bar)


def test_equals_the_oracle() -> None:
    memory = build(segment=2)
    assert isinstance(memory.writer, MemoryPromptWriter)
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(ROWS)).state
        for row, ids in enumerate(ROWS):
            segments = [ids[start : start + 2] for start in range(0, len(ids), 2)]
            vectors, cell = naive.prompt(memory.writer, memory.backbone, segments)
            close(state["memory"][row], vectors)
            close(state["latent"][row], cell)
    assert state["mask"].all()


@settings(max_examples=10)
@given(st.lists(st.lists(st.integers(0, 257), max_size=5), min_size=1, max_size=3), st.booleans())
def test_neither_padding_nor_neighbours_matter(rows: list[list[int]], begun: bool) -> None:
    """Nor whether a neighbour has read anything; an empty row keeps its state to the bit."""
    memory = build(segment=3)
    first = [[1, 2] if begun or row % 2 else [] for row in range(len(rows))]
    start = memory.write(Tokens.from_rows(first)).state
    found = memory.write(Tokens.from_rows([*rows]), start).state
    for row, real in enumerate(rows):
        alone = memory.write(Tokens.from_rows([real]), start.rows(slice(row, row + 1))).state
        for name in ("memory", "latent"):
            close(found[name][row], alone[name][0])
        assert torch.equal(found["mask"][row], alone["mask"][0])
        if not real:
            assert all(torch.equal(found[n][row], start[n][row]) for n in found.tensors)


def test_the_lstm_is_all_there_is_to_carry() -> None:
    """Segments are writes one after the other; the state is m vectors, as many of the cell, and a mask."""
    whole, parts = build(segment=2), build()
    state, other = whole.write(Tokens.from_rows(ROWS)).state, parts.writer.init(3)
    for start in (0, 2, 4):
        other = parts.write(Tokens.from_rows([row[start : start + 2] for row in ROWS]), other).state
    for name in ("memory", "latent"):
        close(state[name], other[name])
    width = whole.backbone.info.hidden_size
    assert whole.writer.spec.floats == 2 * 3 * width + 3
    assert whole.writer.spec.nbytes == 8 * 2 * 3 * width + 3


def test_an_empty_memory_adds_nothing_to_a_read() -> None:
    memory, query = build(), Tokens.from_rows([[8, 9]])
    empty = memory.writer.init(1)
    plain = memory.backbone.logits(memory.backbone.forward(memory.backbone.embed(query.ids)).hidden)
    close(memory.read(empty, query).logits, plain)


def test_training_reaches_every_parameter() -> None:
    """And the norm of the vectors is in the loss, averaged over the segments of each row."""
    memory = build(segment=2, norm_weight=0.5)
    tokens = Tokens.from_rows(ROWS)
    assert memory.write(tokens).losses == {}
    memory.train()
    norm = memory.write(tokens).losses["norm"]
    states: list[MemoryState] = []
    for stop in (2, 4, 5):
        states.append(memory.write(Tokens.from_rows([ROWS[0][:stop]])).state)
    expected = torch.stack([s["memory"][0].norm(dim=-1).mean() for s in states]).mean()
    close(norm[0], 0.5 * expected)
    one = memory.write(Tokens.from_rows([ROWS[1]])).state["memory"][0]
    close(norm[1], 0.5 * one.norm(dim=-1).mean())
    training_loss(memory, Batch(tokens, tokens, tokens.ids)).loss.backward()
    for name, parameter in memory.writer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"slots": 0}, "slots must be at least 1"),
        ({"segment": 0}, "segment must be at least 1"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"norm_weight": -1.0}, "norm_weight must not be negative"),
        ({"init_gain": 0.0}, "init_gain must be positive"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"writer.params.*{message}"):
        build(**params)
