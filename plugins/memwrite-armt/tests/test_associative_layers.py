"""ARMT: the loop that it is, what it holds and what it costs."""

from __future__ import annotations

import pytest
import torch
from memwrite_armt import naive
from memwrite_armt.memory import associated, features, updated
from memwrite_armt.writer import AssociativeWriter

from memwrite import Memory, Tokens
from memwrite.errors import ContractViolation, InputError
from memwrite.state import StateSpec

LLAMA = {
    "type": "llama",
    "params": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "vocab_size": 300, "max_position_embeddings": 128,
    },
    "dtype": "float64",
}  # fmt: skip
SMALL = {"rank": 4, "order": 2}


def memory_of(backbone: dict = LLAMA, trained: bool = True, **params: object) -> Memory:
    memory = Memory.from_config(
        {
            "backbone": backbone,
            "writer": {"name": "associative", "params": {**SMALL, "slots": 3, **params}},
            "reader": {"name": "associative", "params": SMALL},
        }
    )
    if trained:
        generator = torch.Generator().manual_seed(0)
        for weight in (*memory.writer.parameters(), *memory.reader.parameters()):
            weight.data.copy_(
                torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / 2
            )
    return memory


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_batch_of_segments_is_the_loop(family: str, correction: bool) -> None:
    """Of two texts that end in different segments, each alone."""
    backbone = LLAMA
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300, "n_positions": 128}
        backbone = {"type": "gpt2", "params": sizes, "dtype": "float64"}
    memory = memory_of(backbone, segment=4, correction=correction)
    texts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22, 23, 24]]
    state = memory.write(Tokens.from_rows(texts)).state
    assert isinstance(memory.writer, AssociativeWriter)
    for row, ids in enumerate(texts):
        segments = [ids[start : start + 4] for start in range(0, len(ids), 4)]
        with torch.no_grad():
            expected = naive.write(memory.backbone, memory.writer, segments)
        for name, tensor in zip(("S", "z"), expected, strict=True):
            torch.testing.assert_close(state[name][row], tensor, rtol=1e-9, atol=1e-9)


def test_reads_are_the_loop() -> None:
    memory = memory_of()
    state = memory.write(Tokens.from_rows([[5, 6, 7]])).state
    logits = memory.read(state, Tokens.from_rows([[9, 8, 7]])).logits[0]
    layers = {n: naive.Layer(memory.writer, n, state["S"][0, n], state["z"][0, n]) for n in (0, 1)}
    for n, layer in layers.items():
        layer.maps.query.weight.data.copy_(memory.reader.queries[str(n)].weight)
    with torch.no_grad():
        embeddings = torch.cat(
            [memory.backbone.embed(torch.tensor([[9, 8, 7]])), memory.writer.slots[None]], 1
        )
        run = memory.backbone.forward(embeddings, corrections=layers)
        expected = memory.backbone.logits(run.hidden)[0, :3]
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


def test_it_changes_nothing_until_values_are_learnt() -> None:
    """The authors begin with W_v = 0."""
    memory = memory_of(trained=False)
    query = Tokens.from_rows([[9, 8, 7]])
    state = memory.write(Tokens.from_rows([[5, 6, 7]])).state
    assert not state["S"].any()
    assert state["z"].any()
    unwritten = memory.read(memory.writer.init(1), query).logits
    assert torch.equal(memory.read(state, query).logits, unwritten)
    plain = memory.backbone.model(query.ids).logits
    torch.testing.assert_close(unwritten, plain)


def test_the_size_is_the_papers() -> None:
    """GradMem's table counts 198,144 numbers for four layers of width 128."""
    sizes = {**LLAMA["params"], "hidden_size": 128, "num_hidden_layers": 4}
    described = {
        "backbone": {**LLAMA, "params": sizes},
        "writer": {"name": "associative"},
        "reader": {"name": "associative"},
    }
    assert Memory.from_config(described).writer.spec.floats == 198_144


def test_an_overwritten_key_holds_the_new_value() -> None:
    """With gates of 1: the delta rule takes out what the key held. z does not grow, since the key is not new."""
    generator = torch.Generator().manual_seed(0)
    key = features(torch.randn(1, 1, 4, generator=generator, dtype=torch.float64), 2)
    old, new = torch.randn(2, 1, 1, 6, generator=generator, dtype=torch.float64)
    gate = torch.ones(1, 1, dtype=torch.float64)
    state = torch.zeros(1, 6, 16).double(), torch.zeros(1, 16).double()
    state = updated(*state, key, old, gate, True)
    torch.testing.assert_close(associated(*state, key)[0], old, rtol=1e-3, atol=1e-3)
    z = state[1]
    state = updated(*state, key, new, gate, True)
    torch.testing.assert_close(associated(*state, key)[0], new, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(state[1], z, rtol=1e-3, atol=1e-3)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ContractViolation, match="the same rank and order"):
        Memory.from_config(
            {
                "backbone": LLAMA,
                "writer": {"name": "associative", "params": SMALL},
                "reader": {"name": "associative", "params": {"rank": 5}},
            }
        )
    memory = memory_of()
    other = StateSpec("associative", {"S": (1, 32, 16), "z": (1, 16)}, (0,), torch.float64)
    with pytest.raises(InputError, match="built for states of shapes"):
        memory.read(other.zeros(1, "cpu"), Tokens.from_rows([[1]]))
