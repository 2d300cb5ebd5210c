"""The forward writer against its oracle; parity with the official code is in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_forward import naive
from memwrite_specs.testing import MODELS, tolerance

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss

ROWS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]


def build(family: str = "gpt2", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": "float64", "attention": "eager"},
            "writer": {"name": "forward", "params": {"slots": 3, "init_std": 0.5, **params}},
            "reader": {"name": "prefix"},
        }
    )


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("gate", [None, 0.3])
def test_equals_the_oracle(family: str, steps: int, gate: float | None) -> None:
    memory = build(family, steps=steps, gate=gate)
    with torch.no_grad():
        if gate is not None:
            memory.writer.gate.normal_()
        found = memory.write(Tokens.from_rows(ROWS)).state["memory"]
        for row, ids in enumerate(ROWS):
            expected = naive.write(
                memory.backbone, memory.writer.slots, ids, steps, memory.writer.gate
            )
            torch.testing.assert_close(found[row], expected, **tolerance(family))


@settings(max_examples=15)
@given(st.data(), st.sampled_from([{"residual": True}, {"gate": 0.3}]))
def test_neither_padding_nor_neighbours_matter(data: Any, added: dict[str, Any]) -> None:
    """With every option on; an empty row keeps its state to the bit."""
    memory = build(steps=2, control_tokens=1, projection="read-write", segment=3, **added)
    rows = data.draw(st.lists(st.lists(st.integers(0, 257), max_size=6), min_size=1, max_size=3))
    width = max(map(len, rows)) + 1
    ids = torch.full((len(rows), width), data.draw(st.integers(0, 257)))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, real in enumerate(rows):
        places = st.sets(st.integers(0, width - 1), min_size=len(real), max_size=len(real))
        where = sorted(data.draw(places))
        ids[row, where], mask[row, where] = torch.tensor(real, dtype=torch.int64), True
    start = memory.write(Tokens.from_rows([[1, 2]] * len(rows))).state
    found = memory.write(Tokens(ids, mask), start).state
    for row, real in enumerate(rows):
        alone = memory.write(Tokens.from_rows([real]), start.rows(slice(row, row + 1))).state
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(found[name][row], tensor[0], atol=1e-9, rtol=1e-9)
            if not real:
                assert torch.equal(found[name][row], start[name][row])


@pytest.mark.parametrize("projection", ["none", "write", "read-write"])
@pytest.mark.parametrize("gate", [None, 0.3])
def test_segments_are_writes_one_after_the_other(projection: str, gate: float | None) -> None:
    """The last one may be shorter, and rows may end before it."""
    params: dict[str, Any] = {"control_tokens": 2, "projection": projection, "gate": gate}
    whole, parts = build(segment=2, **params), build(**params)
    state = whole.write(Tokens.from_rows(ROWS)).state
    other = parts.writer.init(3)
    for start in (0, 2, 4):
        other = parts.write(Tokens.from_rows([row[start : start + 2] for row in ROWS]), other).state
    for name, tensor in state.tensors.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("added", [{"residual": True}, {"gate": 0.3}])
def test_training_reaches_every_parameter(added: dict[str, Any]) -> None:
    """And the reconstruction loss is there in training only."""
    memory = build(
        steps=2,
        control_tokens=1,
        projection="read-write",
        **added,
        reconstruction_weight=0.5,
        write_head=True,
    )
    tokens = Tokens.from_rows(ROWS)
    assert memory.write(tokens).losses == {}
    memory.train()
    loss = training_loss(memory, Batch(tokens, tokens, tokens.ids)).loss
    loss.backward()
    for name, parameter in memory.writer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_write_and_a_read_pass_gradcheck() -> None:
    memory = build(steps=2).train()
    tokens, query = Tokens.from_rows([[5, 6, 7]]), Tokens.from_rows([[8, 9]])

    def logits(slots: torch.Tensor) -> torch.Tensor:
        state = memory.writer._state(slots)
        read: torch.Tensor = memory.read(memory.write(tokens, state).state, query).logits[..., :7]
        return read

    slots = memory.writer.slots.detach()[None].clone().requires_grad_()
    assert torch.autograd.gradcheck(logits, slots, fast_mode=True)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"slots": 0}, "slots must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"segment": 0}, "segment must be at least 1"),
        ({"control_tokens": -1}, "control_tokens must not be negative"),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight must not be negative"),
        ({"projection": "both"}, "projection must be none or write or read-write"),
        ({"gate": 0.0}, "gate must be positive and finite"),
        ({"gate": 0.1, "residual": True}, "gate goes without residual"),
        ({"write_head": True}, "write_head goes with a reconstruction_weight"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"writer.params.*{message}"):
        build(**params)
