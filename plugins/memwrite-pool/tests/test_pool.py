"""The pool: the loop that it is, how long its slots live, and whose chance it is."""

from __future__ import annotations

import math

import pytest
import torch
from memwrite_pool import naive
from memwrite_pool.layers import key_values
from memwrite_pool.pool import draws, picked, renewed
from memwrite_pool.writer import PoolWriter

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError, InputError
from memwrite.state import MemoryState

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip


def memory_of(attention: str = "eager", **params: object) -> Memory:
    memory = Memory.from_config(
        {
            "backbone": {
                "type": "llama", "params": SIZES, "dtype": "float64", "attention": attention,
            },
            "writer": {"name": "pool", "params": {"slots": 7, "tokens": 3, **params}},
            "reader": {"name": "pool"},
        }
    )  # fmt: skip
    assert isinstance(memory.writer, PoolWriter)
    generator = torch.Generator().manual_seed(1)
    memory.writer.position.data = torch.randn(32, generator=generator, dtype=torch.float64) / 2
    return memory


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_batch_of_segments_is_the_loop(attention: str, per_layer: bool) -> None:
    """Of two texts that end in different segments, the second with fewer tokens than a write makes."""
    memory = memory_of(attention, segment=4, per_layer=per_layer, seed=3)
    model, writer = memory.model, memory.writer
    texts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]]
    state = memory.write(Tokens.from_rows(texts)).state
    for row, ids in enumerate(texts):
        pool, count = None, 0
        for start in range(0, len(ids), 4):
            part = ids[start : start + 4]
            embeddings = memory.backbone.embed(torch.tensor([part]))[0]
            before = None if pool is None else pool[:, -3:]
            size = min(3, len(part))
            with torch.no_grad():
                _, new = naive.run(model, embeddings, before, writer.position, size)
            seeds = torch.tensor([3])
            draw = draws(seeds, torch.tensor([count]), 2 if per_layer else 1, 7)[0]
            layers = []
            for layer in range(2):
                made = [*new[layer]]
                if pool is None:
                    layers.append(naive.filled(made, 7))
                    continue
                order = draw[layer if per_layer else 0].argsort()[:size]
                layers.append(naive.renewed([*pool[layer]], made, {*order.tolist()}))
            pool = torch.stack([torch.stack(layer) for layer in layers])
            count += 1
        torch.testing.assert_close(state["hidden"][row], pool, rtol=1e-6, atol=1e-6)
        assert state["writes"][row] == count
    query = [30, 31, 32]
    logits = memory.read(state, Tokens.from_rows([query, query])).logits
    for row in range(2):
        embeddings = memory.backbone.embed(torch.tensor([query]))[0]
        with torch.no_grad():
            hidden, _ = naive.run(model, embeddings, state["hidden"][row], None, 3)
            expected = model.lm_head(model.model.norm(hidden))
        torch.testing.assert_close(logits[row].double(), expected, rtol=1e-6, atol=1e-6)


def test_keys_and_values_are_each_layers_own() -> None:
    memory = memory_of()
    pool = torch.randn(2, 2, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        found = key_values(memory.backbone, pool, torch.tensor([True, False]))
        for number, layer in enumerate(memory.model.model.layers):
            normed = layer.input_layernorm(pool[:, number])
            values = layer.self_attn.v_proj(normed).unflatten(-1, (2, 8)).transpose(1, 2)
            keys = layer.self_attn.k_proj(normed).unflatten(-1, (2, 8)).transpose(1, 2)
            places = torch.arange(5).expand(2, -1)
            keys = memory.backbone.rotate(keys[:, None], places, [number])[:, 0]
            torch.testing.assert_close(found.values[:, number], values, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(found.keys[:, number], keys, rtol=1e-6, atol=1e-6)
    assert found.mask.sum(1).tolist() == [5, 0]
    assert found.next_position.tolist() == [5, 0]


def test_a_slot_survives_j_writes_with_probability_one_minus_k_over_n_to_the_j() -> None:
    """By counting, in 400 pools of other seeds: within four standard deviations, which slots of one pool share."""
    slots, tokens, writes, rows = 24, 3, 12, 400
    pool = torch.zeros(rows, 1, slots, 1)
    count = torch.full((rows,), tokens)
    seeds, begun = torch.arange(rows), torch.zeros(rows, dtype=torch.bool)
    for write in range(writes):
        new = torch.full((rows, 1, tokens, 1), float(write))
        numbers = torch.full((rows,), write)
        pool = picked(pool, new, renewed(count, ~begun, draws(seeds, numbers, 1, slots)))
        begun = ~torch.zeros(rows, dtype=torch.bool)
    for write in range(writes):
        later = writes - 1 - write
        made = slots if write == 0 else tokens
        found = float((pool == write).sum()) / (rows * made)
        expected = (1 - tokens / slots) ** later
        spread = math.sqrt(expected * (1 - expected) / (rows * made))
        assert abs(found - expected) <= 4 * spread, (write, found, expected)


def test_every_slot_is_as_likely_to_go() -> None:
    rows, slots = 3000, 6
    pool = torch.arange(slots).float().expand(rows, 1, -1)[..., None]
    draw = draws(torch.arange(rows), torch.ones(rows).long(), 1, slots)
    new = torch.full((rows, 1, 2, 1), -1.0)
    left = picked(pool, new, renewed(torch.full((rows,), 2), torch.zeros(rows).bool(), draw))
    for slot in range(slots):
        share = float((left == slot).sum()) / rows
        assert abs(share - 2 / 3) < 4 * math.sqrt(2 / 9 / rows)


def test_chance_is_the_states_own() -> None:
    """The global generator is neither used nor moved; another seed forgets others, a row is as it is alone."""
    texts = [[5, 6, 7, 8], [20, 21, 22, 23]], [[9, 10, 11, 12], [24, 25, 26, 27]]

    def written(memory: Memory, rows: slice = slice(None)) -> MemoryState:
        state = memory.write(Tokens.from_rows(texts[0][rows])).state
        return memory.write(Tokens.from_rows(texts[1][rows]), state).state

    memory = memory_of()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = written(memory)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(written(memory)["hidden"], first["hidden"])
    alone = written(memory, slice(1, 2))
    torch.testing.assert_close(alone["hidden"][0], first["hidden"][1], rtol=1e-9, atol=1e-9)
    other = memory_of(seed=1)
    other.model.load_state_dict(memory.model.state_dict())
    assert not torch.allclose(written(other)["hidden"], first["hidden"])


def test_gradients_reach_the_mark_of_new_tokens() -> None:
    memory = memory_of()
    memory.train()
    state = memory.write(Tokens.from_rows([[5, 6, 7, 8]])).state
    state = memory.write(Tokens.from_rows([[9, 10, 11]]), state).state
    memory.read(state, Tokens.from_rows([[30, 31]])).logits.square().mean().backward()
    assert memory.writer.position.grad.abs().max() > 0


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokens must be at most slots"):
        memory_of(slots=2)
    with pytest.raises(ConfigError, match="leave a question none"):
        memory_of(slots=64)
    with pytest.raises(ConfigError, match="seed must be"):
        memory_of(seed=-1)
    memory = memory_of()
    spec = memory.writer.spec
    shapes = {**spec.shapes, "hidden": (3, 7, 32)}
    other = type(spec)(spec.kind, shapes, (0, 1, 2), spec.dtype)
    with pytest.raises(InputError, match="written for another model"):
        memory.read(other.zeros(1), Tokens.from_rows([[1]]))
