"""Control tokens, projections, write head, auxiliary loss, write-LoRA and drawn steps; parity is in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memwrite_specs.testing import MODELS, tolerance

from memwrite import Memory, Tokens
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss

ROWS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
EVERYTHING: dict[str, Any] = {
    "control_tokens": 2,
    "write_head": True,
    "reconstruction_weight": 0.5,
    "lora_rank": 2,
}


def build(family: str = "gpt2", **params: Any) -> Memory:
    writer = {"slots": 3, "steps": 2, "lr": 0.5, "init_std": 0.2, **params}
    return Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": "float64", "attention": "eager"},
            "writer": {"name": "gradient", "params": writer},
            "reader": {"name": "prefix"},
        }
    )


def adapted(memory: Memory) -> Memory:
    """With a LoRA that does something: its up-projections start at zero."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for up in memory.writer.lora.up.values():
            up.copy_(torch.randn(up.shape, generator=draw, dtype=up.dtype) * 0.1)
    return memory


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("projection", ["none", "shared", "per-example"])
def test_a_write_goes_on_where_the_last_one_stopped(family: str, projection: str) -> None:
    """Two writes of one step each are one write of two; the state carries all that this needs."""
    options = {"projection": projection, "control_tokens": 1}
    tokens = Tokens.from_rows(ROWS)
    once, twice = build(family, steps=1, **options), build(family, steps=2, **options)
    state = once.write(tokens, once.write(tokens).state).state
    for name, tensor in twice.write(tokens).state.tensors.items():
        torch.testing.assert_close(state[name], tensor, **tolerance(family))


@pytest.mark.parametrize("projection", ["shared", "per-example"])
def test_an_empty_row_keeps_its_state_to_the_bit(projection: str) -> None:
    memory = build(projection=projection, **EVERYTHING)
    start = memory.write(Tokens.from_rows([[1, 2], [3]])).state
    after = memory.write(Tokens.from_rows([[], [4, 5]]), start).state
    alone = memory.write(Tokens.from_rows([[4, 5]]), start.rows(slice(1, 2))).state
    for name, tensor in start.tensors.items():
        assert torch.equal(after[name][0], tensor[0])
        torch.testing.assert_close(after[name][1], alone[name][0], atol=1e-9, rtol=1e-9)


def test_a_shared_projection_preconditions_the_step() -> None:
    """GradMem, section 3: W (M − η Wᵀ g) + b, g being the gradient at what the model sees."""
    memory = build(projection="shared", steps=1, lr=0.3)
    plain = build(steps=1, lr=0.3)
    linear = memory.writer.fast.projection
    with torch.no_grad():
        linear.weight.add_(0.2 * torch.randn_like(linear.weight))
        seen = linear(memory.writer.fast.slots)
        plain.writer.fast.slots.copy_(seen)
        plain.model.load_state_dict(memory.model.state_dict())
    tokens = Tokens.from_rows(ROWS)
    step = plain.write(tokens).state["memory"] - seen
    expected = seen + step @ linear.weight @ linear.weight.T
    found = memory.write(tokens).state["memory"]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", MODELS)
def test_lora_acts_while_writing_only(family: str) -> None:
    """It changes what is written, as a model with those weights would write it, and never what is read."""
    tokens, query = Tokens.from_rows(ROWS), Tokens.from_rows([[1, 2]] * 3)
    memory, plain = adapted(build(family, lora_rank=2)), build(family)
    state, other = memory.write(tokens).state, plain.write(tokens).state
    assert (state["memory"] - other["memory"]).abs().max() > 1e-3
    assert torch.equal(memory.read(state, query).logits, plain.read(state, query).logits)
    scale = memory.writer.lora._scale
    if family == "llama":
        with torch.no_grad():
            for layer, block in enumerate(plain.model.model.layers):
                for name in "qkvo":
                    down, up = (
                        memory.writer.lora.down[name][layer],
                        memory.writer.lora.up[name][layer],
                    )
                    getattr(block.self_attn, f"{name}_proj").weight.add_(scale * up @ down)
        merged = plain.write(tokens).state
        torch.testing.assert_close(state["memory"], merged["memory"], **tolerance(family))


def test_training_reaches_every_parameter() -> None:
    memory = adapted(build(projection="shared", learned_lr="each", **EVERYTHING)).train()
    tokens = Tokens.from_rows(ROWS)
    training_loss(memory, Batch(tokens, tokens, tokens.ids)).loss.backward()
    for name, parameter in memory.writer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_auxiliary_loss_is_the_last_steps() -> None:
    """And none is kept at inference."""
    memory = build(reconstruction_weight=0.5)
    tokens = Tokens.from_rows(ROWS)
    assert memory.write(tokens).losses == {}
    written = memory.train().write(tokens)
    expected = 0.5 * written.trace["loss"][-1]
    torch.testing.assert_close(written.losses["reconstruction"].detach(), expected)
    assert written.losses["reconstruction"].requires_grad


def test_steps_are_drawn_in_training_only() -> None:
    memory = build(steps=1, most_steps=3, order="none")
    tokens = Tokens.from_rows(ROWS)
    assert {len(memory.write(tokens).trace["loss"]) for _ in range(4)} == {1}
    memory.train()
    torch.manual_seed(0)
    assert {len(memory.write(tokens).trace["loss"]) for _ in range(30)} == {1, 2, 3}


def test_a_write_head_starts_as_the_models() -> None:
    tokens = Tokens.from_rows(ROWS)
    own, plain = build(write_head=True), build()
    assert torch.equal(own.writer.head, own.model.get_output_embeddings().weight)
    torch.testing.assert_close(
        own.write(tokens).state["memory"], plain.write(tokens).state["memory"], **tolerance("gpt2")
    )
