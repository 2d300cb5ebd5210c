"""Doc-to-LoRA's writer: what its hypernetwork makes of chunks, and memories as sets of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hyper_memories import TEXTS, asked, bare, made, written
from hypothesis import given
from hypothesis import strategies as st
from memwrite_hyperlora import naive
from memwrite_hyperlora.blocks import Blocks, gathered
from torch import Tensor
from torch.testing import assert_close

from memwrite import Memory, MemoryState, Tokens
from memwrite.errors import ConfigError, InputError

EXACT = {"atol": 1e-11, "rtol": 1e-9}
ALL = ["q", "k", "v", "o", "gate", "up", "down"]
SMALL = {
    "rank": 2, "width": 12, "latents": 3, "blocks": 2, "heads": 4, "kv_heads": 2, "head_width": 3,
    "chunk": 9, "chunks": 14, "projections": ["down", "q"],
}  # fmt: skip
READING = {"alpha": 2.0, "rank_scaled": False}


def hypernetwork(params: Mapping[str, Any] | None = None, **options: Any) -> Memory:
    writer = {"name": "doc-to-lora", "params": {**SMALL, **(params or {})}}
    return made(writer, {"name": "per-example-lora", "params": READING}, **options)


MEMORY = hypernetwork({"residual_blocks": 2})


def change(state: MemoryState, layer: int, name: str) -> Tensor:
    """What a memory adds to a projection's weight, (out, in)."""
    return state[f"B.{name}"][0, layer] @ state[f"A.{name}"][0, layer]


@torch.no_grad()
def test_a_chunk_becomes_what_the_loops_make_of_it() -> None:
    memory = MEMORY
    hidden: list[Tensor] = []
    layer = memory.model.base_model.layers[-1]
    handle = layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    ids = memory.encode(TEXTS[2]).ids
    outputs = memory.model(ids, output_hidden_states=True).hidden_states
    handle.remove()
    seen = torch.stack([outputs[0], memory.model.base_model.norm(hidden[0])])[:, 0]
    network = memory.writer.network
    expected = naive.chunk_weights(seen, network.state_dict(), 4, 2, 2, 2)
    state = written(memory, [TEXTS[2]])
    for name, (down, up) in expected.items():
        assert_close(state[f"A.{name}"][0, :, 2:4], down, **EXACT)
        assert_close(state[f"B.{name}"][0, :, :, 2:4].mT, up, **EXACT)
        assert_close(state[f"A.{name}"][0, :, :2], network.bias_A[name], **EXACT)
        assert_close(state[f"B.{name}"][0, :, :, :2].mT, network.bias_B[name], **EXACT)
        assert not state[f"A.{name}"][0, :, 4:].any()


def test_chunks_in_any_order_add_up_to_the_same_weights() -> None:
    whole = written(MEMORY, TEXTS)
    for order in itertools.permutations(TEXTS):
        other = written(MEMORY, list(order))
        for name, layer in itertools.product(("q", "down"), range(2)):
            assert_close(change(other, layer, name), change(whole, layer, name), **EXACT)


def test_documents_add_what_each_adds_and_the_bias_but_once() -> None:
    whole, network = written(MEMORY, TEXTS), MEMORY.writer.network
    for name, layer in itertools.product(("q", "down"), range(2)):
        bias = network.bias_B[name][layer].mT @ network.bias_A[name][layer]
        parts = sum(change(written(MEMORY, [text]), layer, name) - bias for text in TEXTS)
        assert_close(change(whole, layer, name), parts + bias, **EXACT)


def test_the_chunks_of_a_long_text_are_written_like_texts_of_their_own() -> None:
    ids = MEMORY.encode(TEXTS[3]).ids
    size = -(-ids.shape[1] // -(-ids.shape[1] // 9))
    state = MEMORY.writer.init(1)
    for chunk in ids.split(size, 1):
        state = MEMORY.write(Tokens.from_rows(chunk.tolist()), state).state
    for name, tensor in written(MEMORY, [TEXTS[3]]).tensors.items():
        assert_close(state[name], tensor, **EXACT)


@given(st.integers(0, 3))
def test_rank_is_that_of_the_chunks_or_of_their_latents_and_of_the_bias(count: int) -> None:
    state = written(MEMORY, TEXTS[: count + 1])
    chunks = int(state["latent.chunks"])
    rank = int(torch.linalg.matrix_rank(change(state, 0, "down"), atol=1e-9, rtol=0))
    assert rank == min(chunks * 2, 12) + 2


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@torch.no_grad()
def test_the_model_with_the_weights_merged_into_it_says_the_same(dtype: str) -> None:
    params = {"projections": ALL}
    apart, merged = (
        hypernetwork(params, dtype=dtype, attention="sdpa", noise=0.1) for _ in range(2)
    )
    state = written(apart, TEXTS[:2])
    for name, layer in itertools.product(ALL, range(2)):
        weight = merged.backbone.projection(layer, name)
        weight.data.add_(2.0 * change(state, layer, name))
    assert float((asked(apart, state) - bare(apart)).abs().max()) > 0.01
    error = 1e-10 if dtype == "float64" else 1e-5
    assert_close(asked(apart, state), bare(merged), atol=error, rtol=error)


def test_every_row_of_a_batch_is_corrected_by_its_own_memory() -> None:
    texts = [MEMORY.encode(text).ids[0].tolist() for text in TEXTS]
    state = MEMORY.write(Tokens.from_rows(texts)).state
    queries = Tokens.from_rows([MEMORY.encode(text, raw=True).ids[0].tolist() for text in TEXTS])
    with torch.no_grad():
        logits = MEMORY.read(state, queries).logits
    for row, text in enumerate(TEXTS):
        alone = written(MEMORY, [text])
        for name, tensor in alone.tensors.items():
            assert_close(state[name][row : row + 1], tensor, **EXACT)
        single = asked(MEMORY, alone, text)
        assert_close(logits[row : row + 1, : single.shape[1]], single, **EXACT)


def test_an_untrained_memory_and_an_empty_one_change_nothing() -> None:
    untrained = hypernetwork(noise=0)
    assert torch.equal(asked(untrained, written(untrained, TEXTS)), bare(untrained))
    assert torch.equal(asked(MEMORY, MEMORY.writer.init(1)), bare(MEMORY))


@given(st.integers(0, len(TEXTS) - 1))
def test_a_text_that_is_forgotten_was_never_read(number: int) -> None:
    never = written(MEMORY, [text for n, text in enumerate(TEXTS) if n != number])
    found = MEMORY.forget(TEXTS[number], written(MEMORY, TEXTS)).state
    for name, tensor in never.tensors.items():
        assert_close(found[name], tensor, **EXACT)


def test_what_was_not_read_is_refused() -> None:
    state = written(MEMORY, TEXTS[:2])
    for text in (TEXTS[3], TEXTS[0] + TEXTS[1]):
        with pytest.raises(InputError, match=r"row\(s\) \[0\] has not read this context"):
            MEMORY.forget(text, state)
    with pytest.raises(InputError, match="has not read"):
        MEMORY.forget(TEXTS[0], MEMORY.forget(TEXTS[0], state).state)


# ---- more chunks than there is room for ---------------------------------------------------------


def weights(blocks: Blocks) -> Tensor:
    """Σ B A of each row, of the one layer that there is."""
    down, up = (
        blocks.tensors[name] * blocks.used[..., None, None, None] for name in ("A.q", "B.q")
    )
    return torch.einsum("bnlri,bnlro->boi", down, up)


@given(st.integers(0, 999), st.integers(1, 3), st.integers(2, 5), st.integers(3, 9))
def test_a_full_memory_keeps_the_nearest_that_has_its_rank(
    seed: int, room: int, count: int, width: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(2, count, 1, 2, width, generator=random, dtype=torch.float64)
        for name in ("A.q", "B.q")
    }
    used = torch.arange(count) < torch.tensor([count, min(count, room)])[:, None]
    blocks = Blocks(tensors, used)
    kept = gathered([blocks], room)
    assert kept.used.shape[1] <= room
    left, sizes, right = torch.linalg.svd(weights(blocks))
    sizes[:, 2 * room :] = 0
    nearest = left * sizes[:, None] @ right
    assert_close(weights(kept)[0], nearest[0], **EXACT)
    assert_close(weights(kept)[1], weights(blocks)[1], **EXACT)


def test_a_memory_reads_on_when_it_is_full_but_cannot_forget_any_more() -> None:
    memory = hypernetwork({"chunks": 2})
    state = written(memory, TEXTS)
    assert int(state["latent.chunks"]) == 2
    assert float((asked(memory, state) - asked(memory, written(memory, TEXTS[:2]))).abs().max()) > 0
    with pytest.raises(InputError, match="more than 2 chunks in all"):
        memory.forget(TEXTS[0], state)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"chunks": 0}, "chunks must be at least 1"),
        ({"residual_blocks": -1}, "residual_blocks must be at least 0"),
        ({"heads": 3}, "multiple of kv_heads"),
        ({"projections": ["downs"]}, "projections = 'downs'"),
    ],
)
def test_bad_parameters_are_refused(params: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hypernetwork(params)


def test_a_model_without_such_a_projection_is_refused() -> None:
    with pytest.raises(ConfigError, match="no projection 'gate'"):
        Memory.from_config(
            {
                "backbone": {"type": "gpt2", "params": {"n_embd": 32, "n_layer": 1, "n_head": 2}},
                "writer": {"name": "doc-to-lora", "params": {**SMALL, "projections": ["gate"]}},
                "reader": {"name": "per-example-lora"},
            }
        )


def test_the_gradient_of_a_memory_flows_into_every_weight() -> None:
    memory = hypernetwork().train()
    state = memory.write(TEXTS[3]).state
    memory.read(state, memory.encode(TEXTS[1], raw=True)).logits.square().sum().backward()
    for name, weight in memory.writer.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name
