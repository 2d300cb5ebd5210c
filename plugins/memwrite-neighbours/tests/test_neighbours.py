"""Neighbours: full attention where all are near, and the loop that they are where they are not.

transformers rotates by angles in float32, hence tolerances of 1e-6.
"""

from __future__ import annotations

import math

import pytest
import torch
from memwrite_neighbours import naive
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError
from memwrite.protocols import LayerActivations

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300, "n_positions": 64}
ALL = {"nearest": 100, "similarity": None, "special": True}
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22]]


def memory_of(reader: str, params: dict | None = None, **config: object) -> Memory:
    family = str(config.pop("family", "llama"))
    attention = config.pop("attention", "eager")
    return Memory.from_config(
        {
            "backbone": {
                "type": family,
                "params": GPT2 if family == "gpt2" else SIZES,
                "dtype": "float64",
                "attention": attention,
            },
            "writer": {"name": config.pop("writer", "neighbours"), "params": config},
            "reader": {"name": reader, "params": params or {}},
        }
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_with_all_slots_near_it_is_attention_to_the_whole_context(
    family: str, attention: str
) -> None:
    ours = memory_of("extended-mind", ALL, family=family, attention=attention)
    full = memory_of("key-value", writer="full-context", family=family, attention=attention)
    full.model.load_state_dict(ours.model.state_dict())
    context = Tokens.from_rows(TEXTS)
    query = Tokens.from_rows([[30, 31, 32, 33], [34, 35]])
    states = [memory.write(context).state for memory in (ours, full)]
    states[0] = ours.write(context.columns(3, 7), ours.write(context.columns(0, 3)).state).state
    expected = full.read(states[1], query).logits
    torch.testing.assert_close(ours.read(states[0], query).logits, expected, rtol=1e-6, atol=1e-6)
    new = [
        m.generate(s, query, max_new_tokens=4) for m, s in zip((ours, full), states, strict=True)
    ]
    assert torch.equal(*new)
    few = memory_of("extended-mind", {**ALL, "nearest": 2}, family=family, attention=attention)
    few.model.load_state_dict(ours.model.state_dict())
    assert not torch.allclose(few.read(states[0], query).logits, expected, atol=1e-3)


def test_the_state_grows_by_the_context_and_no_more() -> None:
    memory = memory_of("extended-mind")
    assert not memory.writer.spec.bounded
    state = memory.write(Tokens.from_rows(TEXTS)).state
    assert state["keys"].shape == (2, 2, 2, 7, 8)
    more = memory.write(Tokens.from_rows([[40], [41, 42, 43, 44, 45]]), state).state
    assert more["mask"].sum(1).tolist() == [8, 8]
    assert more["mask"].shape == (2, 8)  # the padding between the writes is gone


def test_contexts_may_be_longer_than_the_models_positions() -> None:
    memory = memory_of("extended-mind", {"positions": "zero"}, segment=16, overlap=8)
    text = list(range(5, 205))
    state = memory.write(Tokens.from_rows([text])).state
    assert state["mask"].sum() == 200
    assert memory.read(state, Tokens.from_rows([[7, 8]])).logits.isfinite().all()
    # Each segment is read behind the eight tokens before it, on its own.
    alone = memory_of("extended-mind")
    alone.model.load_state_dict(memory.model.state_dict())
    part = alone.write(Tokens.from_rows([text[8:32]])).state
    expected = alone.backbone.rotate(part["keys"][:, :, :, 8:], torch.zeros(1, 16).long())
    torch.testing.assert_close(state["keys"][:, :, :, 16:32], expected, rtol=1e-6, atol=1e-6)


class Seen:
    """What every layer computed for a query, and what its attention gave, before the output projection."""

    def __init__(self, memory: Memory, state, query: Tokens) -> None:
        conditioning = memory.reader.condition(state)
        assert conditioning.key_values is not None
        self.layers: list[LayerActivations] = []
        self.mixed: list[Tensor] = []
        hooks = [
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args: self.mixed.append(args[0])
            )
            for layer in memory.model.model.layers
        ]
        with torch.no_grad():
            memory.backbone.forward(
                memory.backbone.embed(query.ids),
                past=conditioning.key_values,
                observe=self.layers.append,
            )
        for hook in hooks:
            hook.remove()


def at_zero(memory: Memory, tensor: Tensor, start: int, layer: int) -> Tensor:
    places = start + torch.arange(tensor.shape[2])
    return memory.backbone.rotate(tensor[:, None], -places[None], [layer])[:, 0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("reader", ["extended-mind", "extended-mind-zero", "memorizing", "local"])
def test_attention_is_the_loop(reader: str, attention: str) -> None:
    params = {
        "extended-mind": {"nearest": 3, "similarity": 0.1},
        "extended-mind-zero": {"nearest": 3, "similarity": 0.1, "positions": "zero"},
        "memorizing": {"nearest": 3, "scale": 5.0, "layers": [1]},
        "local": {"nearest": 3, "scale": 5.0, "local": True},
    }[reader]
    own = reader != "extended-mind-zero"
    name = reader.removesuffix("-zero").replace("local", "memorizing")
    memory = memory_of(name, params, attention=attention)
    special = memory.backbone.info.bos_id
    text = [5, 6, special, 8, 9, 10, 11]
    state = memory.write(Tokens.from_rows([text])).state
    seen = Seen(memory, state, Tokens.from_rows([[30, 31, 32, 33]]))
    size = len(text)
    for one, mixed in zip(seen.layers, seen.mixed, strict=True):
        free = at_zero(memory, one.queries, size, one.layer) if own else one.queries
        for head in range(4):
            keys, values = one.keys[0, head // 2], one.values[0, head // 2]
            unplaced = [*state["keys"][0, one.layer, head // 2]]
            allowed = [j for j in range(size) if name == "memorizing" or text[j] != special]
            if name == "memorizing" and one.layer not in params.get("layers", [0, 1]):
                allowed = []
            for t in range(4):
                query, local = one.queries[0, head, t], range(size, size + t + 1)
                picked = [
                    allowed[i]
                    for i in naive.chosen(
                        free[0, head, t],
                        [unplaced[j] for j in allowed],
                        3,
                        float(params.get("similarity", -math.inf)),
                    )
                ]
                logits = {j: float(query @ keys[j]) * one.scale for j in (*picked, *local)}
                if name == "memorizing":
                    for j in picked:
                        logits[j] = 5 * naive.cosine(free[0, head, t], unplaced[j])
                if reader == "local":
                    for j in local:
                        logits[j] = 5 * naive.cosine(query, keys[j])
                expected = naive.attend([*logits.values()], [values[j] for j in logits])
                found = mixed[0, t].unflatten(-1, (4, 8))[head]
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_rows_beams_and_many_queries_of_a_state_do_not_meet() -> None:
    memory = memory_of("extended-mind", {"nearest": 2, "similarity": None})
    state = memory.write(Tokens.from_rows(TEXTS)).state
    ids = torch.tensor([[[30, 31, 32], [33, 34, 35]], [[36, 37, 38], [39, 40, 41]]])
    many = memory.read(state, Tokens(ids, torch.ones_like(ids, dtype=torch.bool))).logits
    for row in range(2):
        one = memory.write(Tokens.from_rows([TEXTS[row]])).state
        for q in range(2):
            alone = memory.read(one, Tokens.from_rows([ids[row, q].tolist()])).logits
            torch.testing.assert_close(many[row, q], alone[0], rtol=1e-6, atol=1e-6)
    beams = memory.generate(
        state, Tokens(ids[:, 0], torch.ones(2, 3, dtype=torch.bool)), max_new_tokens=4, num_beams=3
    )
    alone = memory.generate(
        memory.write(Tokens.from_rows([TEXTS[1]])).state,
        Tokens.from_rows([[36, 37, 38]]),
        max_new_tokens=4,
        num_beams=3,
    )
    assert torch.equal(beams[1], alone[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_scale_is_learned(attention: str) -> None:
    params = {"nearest": 2, "layers": [0]}
    memory = memory_of("memorizing", params, attention=attention, family="gpt2")
    state = memory.write(Tokens.from_rows(TEXTS)).state.detach()
    query = Tokens.from_rows([[30, 31, 32], [33, 34, 35]])

    def loss() -> Tensor:
        return memory.read(state, query).logits.square().mean()

    loss().backward()
    scale = memory.reader.scale
    assert not scale.grad[1].any()
    step = torch.zeros_like(scale)
    step[0, 1] = 1e-5
    with torch.no_grad():
        scale += step
        above = loss()
        scale -= 2 * step
        difference = (above - loss()) / 2e-5
    torch.testing.assert_close(scale.grad[0, 1], difference, rtol=1e-5, atol=1e-10)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="nearest must be at least 1"):
        memory_of("extended-mind", {"nearest": 0})
    with pytest.raises(ConfigError, match="overlap"):
        memory_of("extended-mind", overlap=3)
    with pytest.raises(ConfigError, match="layer"):
        memory_of("memorizing", {"layers": [7]})
    memory = memory_of("extended-mind")
    state = memory.write(Tokens.from_rows([TEXTS[0]])).state
    with pytest.raises(Exception, match="a rule of what each query sees"):
        memory.cache(state)
