"""The readers beside the authors' code: what is kept, logits, attention and its gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from memwrite_neighbours.reader import MemorizingReader
from memwrite_neighbours.writer import NeighboursWriter
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from memwrite import Memory, Tokens
from memwrite.protocols import LayerActivations

DATA = Path(__file__).parent / "data"


def loaded(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def whole(ids: Tensor) -> Tokens:
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize("case", ["plain", "bound"])
def test_extended_mind_is_the_authors(case: str) -> None:
    tensors, about = loaded("extended-mind")
    bound = (
        {"nearest": 5, "similarity": 0.25}
        if case == "bound"
        else {"nearest": 3, "similarity": None}
    )
    memory = Memory.from_config(
        {
            "backbone": {
                "type": "llama",
                "params": {**json.loads(about["sizes"]), "rms_norm_eps": 1e-5},
            },
            "writer": {"name": "neighbours"},
            "reader": {"name": "extended-mind", "params": {**bound, "positions": "zero"}},
        }
    )
    weights = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    memory.model.load_state_dict(weights)
    assert isinstance(memory.writer, NeighboursWriter)
    memory.writer._special = (0, 1, 2)
    state = memory.write(whole(tensors["context"])).state
    kept = ~state["special"][0]
    for layer in range(2):
        for name in ("keys", "values"):
            found = state[name][0, layer][:, kept]
            torch.testing.assert_close(found, tensors[f"{name}.{layer}"], rtol=1e-5, atol=1e-5)
    logits = memory.read(state, whole(tensors["query"])).logits
    torch.testing.assert_close(logits, tensors[f"{case}.logits"], rtol=1e-5, atol=2e-5)


def test_memorizing_is_the_reference_codes() -> None:
    """Of one layer, whose queries and keys have no positions; the text's own logits are cosines, too."""
    tensors, _ = loaded("memorizing")
    sizes = {"n_embd": 24, "n_layer": 1, "n_head": 3, "vocab_size": 300, "n_positions": 64}
    memory = Memory.from_config(
        {
            "backbone": {"type": "gpt2", "params": sizes, "dtype": "float64"},
            "writer": {"name": "neighbours"},
            "reader": {"name": "memorizing", "params": {"nearest": 4, "local": True}},
        }
    )
    reader = memory.reader
    assert isinstance(reader, MemorizingReader)
    reader.scale.data.copy_(tensors["weight.scale"].view(1, 3))
    x = tensors["x"].requires_grad_()
    queries = (x @ tensors["weight.to_q.weight"].T).unflatten(-1, (3, 8)).transpose(1, 2)
    keys, values = (x @ tensors["weight.to_kv.weight"].T).chunk(2, -1)
    keys = torch.cat([tensors["memory.keys"], keys], 1)[:, None]
    values = torch.cat([tensors["memory.values"], values], 1)[:, None]
    seen = LayerActivations(0, x, queries, keys, values, 8**-0.5)
    kept = tensors["memory.keys"][:, :, None, None]
    mask = torch.ones(2, 9, dtype=torch.bool)
    added = reader._logits({"keys": kept, "seen": mask}, seen)
    ahead = F.pad(torch.ones(5, 5, dtype=torch.bool).triu(1), (9, 0))
    logits = (queries @ keys.mT * seen.scale + added).masked_fill(ahead, -torch.inf)
    output = (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)
    output = output @ tensors["weight.to_out.weight"].T
    torch.testing.assert_close(output, tensors["out"], rtol=1e-9, atol=1e-9)
    output.square().sum().backward()
    torch.testing.assert_close(x.grad, tensors["grad.x"], rtol=1e-9, atol=1e-9)
    expected = tensors["grad.scale"].view(1, 3)
    torch.testing.assert_close(reader.scale.grad, expected, rtol=1e-9, atol=1e-9)
