"""What a pool forgets: it is kept, the oldest goes, and each query looks up its nearest of it."""

from __future__ import annotations

import pytest
import torch
from memwrite_pool.layers import key_values
from memwrite_pool.pool import draws

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError
from memwrite.protocols import LayerActivations
from memwrite.state import MemoryState

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip
TEXT = list(range(5, 5 + 22))


def memory_of(retrieved: int = 100, **params: object) -> Memory:
    return Memory.from_config(
        {
            "backbone": {"type": "llama", "params": SIZES, "dtype": "float64"},
            "writer": {
                "name": "pool",
                "params": {"slots": 5, "tokens": 2, "segment": 4, "long": 6, **params},
            },
            "reader": {"name": "pool", "params": {"retrieved": retrieved}},
        }
    )


def written(memory: Memory, *texts: list[int]) -> MemoryState:
    return memory.write(Tokens.from_rows(texts)).state


@pytest.mark.parametrize("per_layer", [False, True])
def test_it_holds_what_the_pool_has_forgotten(per_layer: bool) -> None:
    """In the order in which it went; the second text is shorter and forgets less."""
    memory = memory_of(per_layer=per_layer)
    plain = memory_of(per_layer=per_layer, long=0)
    plain.model.load_state_dict(memory.model.state_dict())
    texts = [TEXT, TEXT[:7]]
    state = written(memory, *texts)
    for row, text in enumerate(texts):
        went: list[list[torch.Tensor]] = [[], []]
        before = None
        for count, start in enumerate(range(0, len(text), 4)):
            after = plain.write(Tokens.from_rows([text[start : start + 4]]), before).state
            if before is not None:
                new = min(2, len(text) - start)
                draw = draws(torch.tensor([0]), torch.tensor([count]), 2 if per_layer else 1, 5)[0]
                for layer in range(2):
                    order = draw[layer if per_layer else 0].argsort()[:new].sort().values
                    went[layer] += [before["hidden"][0, layer, slot] for slot in order]
            before = after
        for layer, gone in enumerate(went):
            kept = gone[-6:]
            found = state["long"][row, layer, 6 - len(kept) :]
            torch.testing.assert_close(found, torch.stack(kept), rtol=1e-6, atol=1e-6)
            assert not state["long_made"][row, layer, : 6 - len(kept)].any()
    torch.testing.assert_close(state["hidden"][0], before_pool(plain, TEXT), rtol=1e-6, atol=1e-6)


def before_pool(memory: Memory, text: list[int]) -> torch.Tensor:
    return written(memory, text)["hidden"][0]


def test_slots_know_the_write_that_made_them() -> None:
    memory = memory_of()
    state = written(memory, TEXT)
    assert state["writes"].tolist() == [6]
    assert state["made"][0, 0, -2:].tolist() == [6, 6]
    # Every slot that was ever made is in one of the two, but for those that went first.
    assert sorted(state["made"][0, 0].tolist()) == state["made"][0, 0].tolist()
    assert (state["long_made"] < 6).all()


def test_with_all_of_it_retrieved_it_is_seen_like_the_pool() -> None:
    """The oldest first, before the pool; with none retrieved only their places are left."""
    memory, none = memory_of(), memory_of(retrieved=0)
    none.model.load_state_dict(memory.model.state_dict())
    state = written(memory, TEXT)
    query = Tokens.from_rows([[30, 31, 32]])
    order = state["long_made"].argsort(dim=-1, stable=True)[..., None].expand_as(state["long"])
    whole = torch.cat([state["long"].gather(2, order), state["hidden"]], 2)
    with torch.no_grad():
        past = key_values(memory.backbone, whole, torch.tensor([True]))
        embeddings = memory.backbone.embed(query.ids)
        expected = memory.backbone.logits(memory.backbone.forward(embeddings, past=past).hidden)
        mask = past.mask.clone()
        mask[:, :6] = False
        hidden = type(past)(past.keys, past.values, mask, past.next_position)
        without = memory.backbone.logits(memory.backbone.forward(embeddings, past=hidden).hidden)
    found = memory.read(state, query).logits
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(none.read(state, query).logits, without, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(expected, without, atol=1e-4)


def test_each_query_looks_up_its_nearest() -> None:
    memory = memory_of(retrieved=2)
    state = written(memory, TEXT)
    past = memory.reader.condition(state).key_values
    assert past is not None
    assert past.rule is not None
    seen: list[LayerActivations] = []
    with torch.no_grad():
        ids = torch.tensor([[30, 31, 32]])
        memory.backbone.forward(memory.backbone.embed(ids), past=past, observe=seen.append)
        for one in seen:
            added = past.rule(one)[0]
            for head in range(4):
                for token in range(3):
                    query = one.queries[:, head : head + 1, token : token + 1][:, None]
                    query = memory.backbone.rotate(
                        query, torch.tensor([[-11 - token]]), [one.layer]
                    )
                    keys = one.keys[:, head // 2 : head // 2 + 1, :6][:, None]
                    keys = memory.backbone.rotate(keys, -torch.arange(6)[None], [one.layer])
                    alike = torch.cosine_similarity(query[0, 0, 0], keys[0, 0, 0], dim=-1)
                    found = {*(added[head, token, :6] == 0).nonzero().flatten().tolist()}
                    assert found == {*alike.topk(2).indices.tolist()}
            assert (added[:, :, 6:] == 0).all()


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="long must not be negative"):
        memory_of(long=-1)
    with pytest.raises(ConfigError, match="retrieved must not be negative"):
        memory_of(retrieved=-1)
    with pytest.raises(ConfigError, match="leave a question none"):
        memory_of(long=60)
