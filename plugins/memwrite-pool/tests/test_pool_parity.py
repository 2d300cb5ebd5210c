"""The pool beside the authors' code: the state after each of three writes, and logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from memwrite_pool import writer as writing
from memwrite_pool.writer import PoolWriter
from safetensors import safe_open

from memwrite import Memory, Tokens
from memwrite.state import MemoryState

FILE = Path(__file__).parent / "data" / "pool.safetensors"


@pytest.mark.parametrize("case", ["common", "per-layer"])
def test_it_is_the_authors(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with safe_open(FILE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    slots, tokens = int(about["slots"]), int(about["tokens"])
    memory = Memory.from_config(
        {
            "backbone": {"type": "llama", "params": json.loads(about["sizes"]), "dtype": "float64"},
            "writer": {
                "name": "pool",
                "params": {"slots": slots, "tokens": tokens, "per_layer": case == "per-layer"},
            },
            "reader": {"name": "pool"},
        }
    )
    weights = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    memory.model.load_state_dict(weights)
    assert isinstance(memory.writer, PoolWriter)
    memory.writer.position.data.copy_(tensors["position"])
    # The slots that they keep come first in their permutation; those of the lowest draws are forgotten.
    orders = [*tensors[f"{case}.draws"]]

    def draws(seeds: torch.Tensor, writes: torch.Tensor, layers: int, size: int) -> torch.Tensor:
        if int(writes) == 0:
            return torch.zeros(1, layers, size)
        taken = [orders.pop(0) for _ in range(layers)]
        return -torch.stack([order.argsort() for order in taken])[None].double()

    monkeypatch.setattr(writing, "draws", draws)
    state = memory.writer.init(1)
    for number in range(3):
        text = tensors[f"text.{number}"]
        state = memory.write(Tokens(text, torch.ones_like(text, dtype=torch.bool)), state).state
        theirs = tensors[f"{case}.state.{number}"]
        expected = theirs.clone()
        if number == 0:
            # They add the mark of new tokens to what they have already kept of all layers but the last.
            expected[:-1] -= tensors["position"]
        torch.testing.assert_close(state["hidden"][0], expected, rtol=1e-5, atol=1e-5)
        state = MemoryState(state.spec, {**state.tensors, "hidden": theirs[None]})
    assert not orders
    query = tensors["query"]
    logits = memory.read(state, Tokens(query, torch.ones_like(query, dtype=torch.bool))).logits
    torch.testing.assert_close(logits.double(), tensors[f"{case}.logits"], rtol=1e-5, atol=1e-5)
