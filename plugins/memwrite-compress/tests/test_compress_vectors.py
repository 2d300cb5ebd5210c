"""Compressors into vectors against their loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_compress import naive
from memwrite_compress.prefixes import PrefixCompressor
from memwrite_specs.testing import HYBRIDS, MODELS, tolerance
from torch.nn import functional as F

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18]]
QUERY = [20, 21, 22]
#: Writer and its parameters.
CASES = {
    "autocompressor": ("autocompressor", {}),
    "autocompressor-of-two": ("autocompressor", {"rank": 2, "keep": 2}),
    "autocompressor-that-grows": ("autocompressor", {"keep": None}),
    "icae": ("icae", {"rank": 2}),
    "icae-of-two": ("icae", {"rank": 2, "keep": 2}),
    "icae-that-grows": ("icae", {"rank": 2, "keep": None}),
}


def build(family: str = "gpt2", writer: str = "icae", **params: Any) -> Memory:
    """Return a memory whose writer has weights as if it were trained."""
    backbone = {"type": family, "params": HYBRIDS[family]} if family in HYBRIDS else MODELS[family]
    memory = Memory.from_config(
        {
            "backbone": {**backbone, "dtype": "float64", "attention": "eager"},
            "writer": {"name": writer, "params": {"slots": 2, "init_std": 0.5, **params}},
            "reader": {"name": "prefix"},
        }
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in memory.writer.named_parameters():
        if ".B." in name:
            random = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.data.copy_(random / 10)
    return memory


def cut(ids: list[int], even: bool) -> list[list[int]]:
    """Cut a row into segments of at most three tokens, or of as many as one another."""
    count = -(-len(ids) // 3)
    width = -(-len(ids) // count) if even else 3
    return [ids[start : start + width] for start in range(0, len(ids), width)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", MODELS)
def test_a_batch_of_segments_is_the_loop(family: str, case: str) -> None:
    """In states and in answers, for rows that end in different segments."""
    name, params = CASES[case]
    memory = build(family, name, segment=3, **params)
    writer = memory.writer
    assert isinstance(writer, PrefixCompressor)
    rows = [*ROWS, [23, 24, 25, 26]]
    state = memory.write(Tokens.from_rows(rows)).state
    answers = memory.read(state, Tokens.from_rows([QUERY] * 4)).logits
    for row, ids in enumerate(rows):
        with torch.no_grad():
            expected = naive.summaries(
                memory.backbone, writer.tokens, writer.lora, cut(ids, name == "icae"),
                recurrent=writer.recurrent, keep=params.get("keep") or 4,
            )  # fmt: skip
            if name == "icae":
                expected = torch.cat([expected, writer.answer])
            query = memory.backbone.embed(torch.tensor([QUERY]))[0]
            run = memory.backbone.forward(torch.cat([expected, query])[None]).hidden[0, -3:]
            logits = memory.backbone.logits(run)
        mask = state["mask"][row]
        assert mask.tolist() == [True] * len(expected) + [False] * (len(mask) - len(expected))
        torch.testing.assert_close(state["memory"][row][mask], expected, **tolerance(family))
        assert not state["memory"][row][~mask].any()
        torch.testing.assert_close(answers[row], logits, **tolerance(family))


def test_summary_tokens_begin_as_the_end_token() -> None:
    memory = build(writer="autocompressor", init_std=0.0)
    end = memory.backbone.embed(torch.tensor([[memory.backbone.info.eos_id]]))[0]
    torch.testing.assert_close(memory.writer.tokens.detach(), end.expand(2, -1).double())


@pytest.mark.parametrize("case", CASES)
def test_answers_depend_on_the_context_through_the_state_alone(case: str) -> None:
    """With the state held fixed, their gradient at the context's embeddings is 0."""
    name, params = CASES[case]
    memory = build("llama", name, segment=2, **params).train()
    weight = memory.model.get_input_embeddings().weight.requires_grad_()
    for held in (True, False):
        weight.grad = None
        state = memory.write(Tokens.from_rows([[5, 6, 7]])).state
        state = state.detach() if held else state
        memory.read(state, Tokens.from_rows([QUERY])).logits.square().sum().backward()
        assert weight.grad[QUERY].any()
        assert (weight.grad[[5, 6, 7]].abs().sum(1) > 0).tolist() == [not held] * 3


@settings(max_examples=15)
@given(st.data())
def test_neither_padding_nor_neighbours_matter(data: Any) -> None:
    """Nor what a row held before; a row without tokens keeps its state to the bit."""
    name, params = CASES[data.draw(st.sampled_from(sorted(CASES)))]
    family = data.draw(st.sampled_from([*sorted(MODELS), "qwen3_next"]))
    memory = build(family, name, segment=3, **params)
    rows = data.draw(st.lists(st.lists(st.integers(0, 257), max_size=7), min_size=1, max_size=3))
    width = max(map(len, rows)) + 1
    ids = torch.full((len(rows), width), data.draw(st.integers(0, 257)))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, real in enumerate(rows):
        places = st.sets(st.integers(0, width - 1), min_size=len(real), max_size=len(real))
        where = sorted(data.draw(places))
        ids[row, where], mask[row, where] = torch.tensor(real, dtype=torch.int64), True
    first = [[1, 2, 3, 4, 5][row:] for row in range(len(rows))]
    start = memory.write(Tokens.from_rows(first)).state
    found = memory.write(Tokens(ids, mask), start).state
    for row, real in enumerate(rows):
        alone = memory.write(Tokens.from_rows([real]), start.rows(slice(row, row + 1))).state
        size = alone["mask"].shape[1]
        assert not found["mask"][row, size:].any()
        for part, tensor in alone.tensors.items():
            torch.testing.assert_close(found[part][row, :size], tensor[0], **tolerance(family))
            if not real:
                held = start[part].shape[1]
                assert torch.equal(found[part][row, :held], start[part][row])


def test_training_reaches_every_parameter() -> None:
    for name, params in CASES.values():
        weights = {"autoencoding_weight": 0.5} if name == "icae" else {}
        memory = build("llama", name, segment=3, **params, **weights).train()
        written = memory.write(Tokens.from_rows(ROWS))
        logits = memory.read(written.state, Tokens.from_rows([QUERY] * 3)).logits
        (logits.square().sum() + sum(loss.sum() for loss in written.losses.values())).backward()
        for parameter, weight in memory.writer.named_parameters():
            assert weight.grad is not None, parameter
            assert weight.grad.abs().sum() > 0, parameter


def test_autoencoding_is_the_likelihood_of_the_context() -> None:
    """Behind the memory and a vector that asks for it; of each row by itself, and in training alone."""
    memory = build("llama", "icae", rank=2, segment=3, autoencoding_weight=0.5)
    assert memory.write(Tokens.from_rows(ROWS)).losses == {}
    memory.train()
    written = memory.write(Tokens.from_rows(ROWS))
    for row, ids in enumerate(ROWS):
        slots = written.state["memory"][row][written.state["mask"][row]][:-1]
        context = memory.backbone.embed(torch.tensor([ids]))[0]
        inputs = torch.cat([slots, memory.writer.repeat, context[:-1]])
        hidden = memory.backbone.forward(inputs[None]).hidden[0, len(slots) :]
        expected = F.cross_entropy(memory.backbone.logits(hidden), torch.tensor(ids)) / 2
        torch.testing.assert_close(written.losses["autoencoding"][row], expected)


def test_a_memory_without_vectors_is_no_memory() -> None:
    """A row that has read nothing answers as the model does alone, beside one that has read something."""
    memory = build("llama")
    state = memory.write(Tokens.from_rows([[], [5, 6]])).state
    query = Tokens.from_rows([QUERY] * 2)
    found = memory.read(state, query).logits[0]
    torch.testing.assert_close(found, memory.model(query.ids).logits[0], **tolerance("llama"))
    made = memory.generate(state, query, max_new_tokens=3, do_sample=False)
    alone = memory.generate(state.rows(slice(1, 2)), Tokens.from_rows([QUERY]), max_new_tokens=3)
    assert made[1].tolist() == alone[0].tolist()


@pytest.mark.parametrize(
    ("params", "message"),
    [({"keep": 0}, "keep must be at least 1"), ({"autoencoding_weight": -1.0}, "at least 0")],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**params)
