"""Whole models and extreme hidden states: states stay within what the weights allow, or a write is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import MODELS
from torch import Tensor

from memwrite import Memory, MemoryState, Tokens
from memwrite.errors import DivergenceError
from memwrite.protocols import LayerInput

OUTSIDE = {"update": "lambda_outside"}
#: Settings, and how many times its largest value a row of a bounded state can measure.
SETTINGS: dict[str, tuple[str, dict[str, Any], float]] = {
    "coupled": ("delta", OUTSIDE, 1),
    "slow": ("delta", {**OUTSIDE, "forgetting": "free", "most_keep": 0.99}, (1 - 0.99**2) ** -0.5),
    "hebbian": ("hebbian", {"keep": 0.9, "learning_rate": 0.5}, 0.5 / (1 - 0.9)),
    "released": ("delta", {}, torch.inf),
    "free": ("delta", {"forgetting": "free"}, torch.inf),
    "kept": ("delta", {"forgetting": "none", "gates": "head"}, torch.inf),
    "gated": ("gated-delta", {}, torch.inf),
}
each = pytest.mark.parametrize("name", SETTINGS)
bounded = pytest.mark.parametrize("name", [n for n in SETTINGS if SETTINGS[n][2] < torch.inf])
each_family = pytest.mark.parametrize("family", sorted(MODELS))
pytestmark = pytest.mark.filterwarnings("ignore:writer '")


def build(name: str, family: str = "gpt2", dtype: str = "float32", **params: Any) -> Memory:
    """A small model, gates that differ from token to token, and reads that change much of what it sees."""
    writer, own, _ = SETTINGS[name]
    sizes = {"rank": 3, "value_width": 2, "heads": 2}
    memory = Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": dtype},
            "writer": {"name": writer, "params": {**sizes, **own, **params}},
            "reader": {"name": "lora", "params": {"init": "random", "gain": 4.0}},
        }
    )
    random = torch.Generator().manual_seed(0)
    for cell in memory.writer.cells.values():
        for gate in (getattr(cell, gate, None) for gate in ("beta", "keep", "alpha")):
            if gate is not None:
                gate.weight.data.normal_(std=0.5, generator=random)
    return memory


@each
def test_extreme_hidden_states(name: str) -> None:
    """In float32, at 10⁴, at 10⁻³⁰, at zero, constant and alternating: states, reads, traces and gradients are finite,
    and a state is within its bound; where it has none, it grows by no more than a value with every token."""
    writer, factor = build(name).writer, SETTINGS[name][2]
    noise = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    signs = ((-1.0) ** torch.arange(300))[:, None] * torch.ones(32)
    kinds = [noise * 1e4, noise * 1e-30, noise * 0, signs.abs() * 1e4, signs * 1e4]
    hidden = torch.stack([*kinds, signs * noise[0] * 1e4]).requires_grad_()
    mask, queries = torch.ones(6, 300, dtype=torch.bool), torch.ones(6, 300, 2, 3)
    start = torch.zeros(6, 2, 2, 3)
    found = writer.scan(LayerInput(0, hidden, mask, None, queries), {"S": start}, write=True)
    state = found.state["S"]
    (found.reads.sum() + state.sum()).backward()
    trace = found.trace()
    gradients = [hidden.grad, *(p.grad for p in writer.cells["0"].parameters())]
    for tensor in (found.reads, state, trace["norm"], *gradients):
        assert tensor.isfinite().all()
    assert (trace["half_life"] >= 0).all()
    largest = writer.cells["0"](hidden).values.abs().amax(1)
    assert (state.norm(dim=-1) <= min(factor, 300) * largest * (1 + 1e-5)).all()


def test_a_state_that_explodes_is_refused() -> None:
    """normalize=False, and keys much longer than 1: an error, not a state of infinities."""
    memory = build("coupled", normalize=False)
    for cell in memory.writer.cells.values():
        cell.key.weight.data *= 100
    with pytest.raises(DivergenceError, match="writer 'delta' diverged: 'S' is not finite"):
        memory.write(Tokens.from_rows([list(range(60))]))
    assert memory.write(Tokens.from_rows([[1]])).state["S"].isfinite().all()


@each
@settings(max_examples=5)
@given(rows=st.lists(st.lists(st.integers(0, 257), max_size=130), min_size=1, max_size=2))
def test_any_tokens_leave_a_finite_state(name: str, rows: list[list[int]]) -> None:
    assert build(name, "llama").write(Tokens.from_rows(rows)).state["S"].isfinite().all()


def row_norms(state: MemoryState) -> Tensor:
    """(B, L, H, Dv)."""
    return state["S"].norm(dim=-1)


def allowed(memory: Memory) -> Tensor:
    """The largest values (L, H, Dv) that any text can make the model write: what a layer's attention receives has passed
    through a norm, so it is no longer than √D times the norm's largest weight, plus the norm's bias."""
    model, found = memory.model, []
    for layer, cell in zip(memory.writer.spec.layers, memory.writer.cells.values(), strict=True):
        if hasattr(model, "transformer"):
            norm = model.transformer.h[layer].ln_1
            longest = norm.weight.abs().max() * norm.weight.numel() ** 0.5 + norm.bias.norm()
        else:
            norm = model.model.layers[layer].input_layernorm
            longest = norm.weight.abs().max() * norm.weight.numel() ** 0.5
        found.append((cell.value.weight.norm(dim=1) * longest).view(2, 2))
    return torch.stack(found).detach()


def watched(memory: Memory) -> Callable[[], Tensor]:
    """The largest values (L, H, Dv) that the model has written from now on."""
    seen = {name: torch.zeros(2, 2, dtype=memory.writer.spec.dtype) for name in memory.writer.cells}

    def hook(name: str) -> Callable[..., None]:
        def see(module: Any, inputs: Any, values: Tensor) -> None:
            largest = values.detach().abs().amax((0, 1)).view(2, 2)
            seen[name] = torch.maximum(seen[name], largest)

        return see

    for name, cell in memory.writer.cells.items():
        cell.value.register_forward_hook(hook(name))
    return lambda: torch.stack(list(seen.values()))


def searched(memory: Memory, length: int) -> Tensor:
    """Token after token the one of 86 that makes the state largest, (1, length)."""
    row = torch.zeros(1, 0, dtype=torch.int64)
    for step in range(length):
        tries = torch.arange(step % 3, 258, 3)[:, None]
        texts = torch.cat([row.expand(len(tries), -1), tries], 1)
        states = memory.write(Tokens(texts, torch.ones_like(texts, dtype=torch.bool))).state
        best = int(row_norms(states).flatten(1).norm(dim=1).argmax())
        row = texts[best : best + 1]
    return row


@bounded
@each_family
def test_no_text_exceeds_the_bound(name: str, family: str) -> None:
    """Random texts, one token over and over, and the worst that a search finds, once and again: every row of the state
    keeps to its factor of the largest value written, which keeps to what the weights allow."""
    memory, factor = build(name, family), SETTINGS[name][2]
    largest = watched(memory)
    random = torch.Generator().manual_seed(0)
    same = torch.randint(258, (32, 1), generator=random).expand(-1, 64)
    attack = searched(memory, 12)
    texts = [torch.randint(258, (64, 64), generator=random), same, attack, attack.repeat(1, 16)]
    for ids in texts:
        state = memory.write(Tokens(ids, torch.ones_like(ids, dtype=torch.bool))).state
        assert (row_norms(state) <= factor * largest() * (1 + 1e-6)).all()
    assert (largest() <= allowed(memory) * (1 + 1e-6)).all()
