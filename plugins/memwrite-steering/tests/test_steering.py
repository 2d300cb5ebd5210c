"""Steering: the loop that it is, what turns it round, and what leaves the model alone."""

from __future__ import annotations

import pytest
import torch
from memwrite_steering import contrast, naive
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError, InputError
from memwrite.state import MemoryState, StateSpec

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip
POSITIVE, NEGATIVE = [[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14, 15]]
QUERY = Tokens.from_rows([[30, 31, 32]])


def memory_of(writer: str = "steering", **params: object) -> Memory:
    residual = writer == "steering"
    return Memory.from_config(
        {
            "backbone": {"type": "llama", "params": SIZES, "dtype": "float64"},
            "writer": {"name": writer, "params": {} if residual else params},
            "reader": {
                "name": "steering" if residual else "key-value",
                "params": params if residual else {},
            },
        }
    )


def context(positive: list[list[int]], negative: list[list[int]]) -> Tokens:
    texts = [text for pair in zip(positive, negative, strict=True) for text in pair]
    ids = [[token for text in texts for token in text]]
    segments = [[number for number, text in enumerate(texts) for _ in text]]
    tokens = Tokens.from_rows(ids)
    return Tokens(tokens.ids, tokens.mask, torch.tensor(segments))


def logits(memory: Memory, state: MemoryState) -> Tensor:
    return memory.read(state, QUERY).logits[0]


@pytest.mark.parametrize("probed", [False, True])
def test_it_is_the_loop(probed: bool) -> None:
    memory = memory_of(strength=1.5, layers=[1], probed=probed)
    state = memory.write(context(POSITIVE, NEGATIVE)).state
    with torch.no_grad():
        means = [naive.behind(memory.model, texts, 1) for texts in (POSITIVE, NEGATIVE)]
        vector = state["positive"] / 2 - state["negative"] / 2
        torch.testing.assert_close(vector[0, 1], means[0] - means[1], rtol=1e-6, atol=1e-6)

        def steer(_module: object, _args: object, output: Tensor) -> Tensor:
            rows = [naive.steered(h, *means, strength=1.5, probed=probed) for h in output[0]]
            fired.extend(bool((row != h).any()) for row, h in zip(rows, output[0], strict=True))
            return torch.stack(rows)[None]

        fired: list[bool] = []
        found = logits(memory, state)
        hook = memory.model.model.layers[1].register_forward_hook(steer)
        expected = memory.model(QUERY.ids).logits[0]
        hook.remove()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert any(fired)
    assert probed is False or not all(fired)


def test_exchanged_texts_steer_the_other_way() -> None:
    memory, other = memory_of(), memory_of(strength=-1.0)
    other.model.load_state_dict(memory.model.state_dict())
    state = memory.write(context(POSITIVE, NEGATIVE)).state
    turned = memory.write(context(NEGATIVE, POSITIVE)).state
    torch.testing.assert_close(logits(memory, turned), logits(other, state))
    assert not torch.allclose(logits(memory, turned), logits(memory, state), atol=1e-4)


@pytest.mark.parametrize("writer", ["steering", "steered-cache"])
def test_what_does_not_differ_does_not_steer(writer: str) -> None:
    memory = memory_of(writer)
    state = memory.write(context(POSITIVE, POSITIVE)).state
    query = QUERY
    if writer == "steered-cache":  # the slot is that of the token that opens a text
        query = Tokens.from_rows([[memory.backbone.info.bos_id, 30, 31, 32]])
    plain = memory.model(query.ids).logits[0, -3:]
    torch.testing.assert_close(logits(memory, state), plain, rtol=1e-6, atol=1e-6)


def test_no_strength_changes_nothing() -> None:
    memory = memory_of(strength=0.0)
    state = memory.write(context(POSITIVE, NEGATIVE)).state
    torch.testing.assert_close(logits(memory, state), memory.model(QUERY.ids).logits[0])


def test_the_effect_on_the_stream_is_linear_in_the_strength() -> None:
    left: list[Tensor] = []
    memory = memory_of()
    memory.model.model.norm.register_forward_pre_hook(lambda _, args: left.append(args[0]))
    weights = memory.model.state_dict()
    state = memory.write(context(POSITIVE, NEGATIVE)).state
    left.clear()
    for strength in (0.0, 1.0, 3.0):
        other = memory_of(strength=strength, layers=[2])
        other.model.load_state_dict(weights)
        other.model.model.norm.register_forward_pre_hook(lambda _, args: left.append(args[0]))
        logits(other, state)
    torch.testing.assert_close(left[2] - left[0], 3 * (left[1] - left[0]))


def test_a_slot_is_moved_by_the_differences_of_means() -> None:
    memory = memory_of("steered-cache", keys=0.5, values=2.0)
    state = memory.write(context(POSITIVE, NEGATIVE)).state

    def mean(texts: list[list[int]]) -> list[Tensor]:
        found: list[list[Tensor]] = []
        for ids in texts:
            cache = memory.backbone.forward(
                memory.backbone.embed(torch.tensor([ids])), use_cache=True
            ).key_values
            assert cache is not None
            keys = memory.backbone.rotate(cache.keys[:, :, :, -1:], torch.tensor([[1 - len(ids)]]))
            found.append([keys, cache.values[:, :, :, -1:]])
        return [torch.stack(part).mean(0) for part in zip(*found, strict=True)]

    with torch.no_grad():
        opening = mean([[memory.backbone.info.bos_id]])
        (k, v), (k2, v2) = mean(POSITIVE), mean(NEGATIVE)
    torch.testing.assert_close(state["keys"], opening[0] + 0.5 * (k - k2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state["values"], opening[1] + 2 * (v - v2), rtol=1e-6, atol=1e-6)
    assert state["next_position"].tolist() == [1]


def test_pairs_of_texts_become_a_context() -> None:
    memory = memory_of()
    tokens = contrast(memory, [("yes", "no"), ("good", "evil")])
    assert tokens.segments is not None
    assert tokens.segments[0].tolist() == [0] * 3 + [1] * 2 + [2] * 4 + [3] * 4
    state = memory.write(tokens).state
    assert float(state["positives"]) == float(state["negatives"]) == 2
    assert memory.ask(state, "What?", max_new_tokens=2) is not None


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="strength must be a number"):
        memory_of(strength=float("nan"))
    with pytest.raises(ConfigError, match="layer"):
        memory_of(layers=[9])
    memory = memory_of()
    shapes = {"positive": (1, 32), "negative": (1, 32), "positives": (), "negatives": ()}
    other = StateSpec("steering", shapes, (0,), torch.float64)
    with pytest.raises(InputError, match="written for another model"):
        memory.read(other.zeros(1), QUERY)
