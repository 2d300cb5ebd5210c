"""Memories that are asked again: the same answers, the model run once, and no more bytes than allowed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MODELS

from memwrite import Memory, MemoryState, Tokens
from memwrite.errors import InputError
from memwrite.inference.prefill_cache import PrefillCache

TEXTS = ["one", "another", "a third one", "the last"]


def build(reader: str = "prefix", **changes: Any) -> Memory:
    backbone = {**MODELS["llama"], "dtype": "float64", **changes}
    writer = "gradient" if reader == "prefix" else "delta"
    params = {"slots": 3} if reader == "prefix" else {}
    return Memory.from_config(
        {
            "backbone": backbone,
            "writer": {"name": writer, "params": params},
            "reader": {"name": reader},
        }
    )


MEMORY, PLAIN = build(), build()
MEMORY.prefills = PrefillCache()
STATES = PLAIN.write(TEXTS).state
#: Of one row.
BYTES = 2 * 2 * 2 * 3 * 8 * 8 + 3 + 8 + 258 * 8


class Passes:
    """Counts the positions that a backbone runs over."""

    def __init__(self, memory: Memory, patch: pytest.MonkeyPatch) -> None:
        self.positions = 0
        forward = memory.backbone.forward

        def counting(embeddings: Any, **options: Any) -> Any:
            self.positions += embeddings.shape[0] * embeddings.shape[1]
            return forward(embeddings, **options)

        patch.setattr(memory.backbone, "forward", counting)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_answers_are_those_of_a_memory_without_a_cache(asked: list[list[int]]) -> None:
    """Whatever was asked before, also where it does not all fit."""
    for cache in (PrefillCache(), PrefillCache(2 * BYTES)):
        MEMORY.prefills = cache
        for rows in asked:
            states = STATES.rows(torch.tensor(rows))
            query = Tokens.from_rows([[1, 2, 3][: 1 + row] for row in rows])
            with torch.no_grad():
                found, expected = MEMORY.read(states, query), PLAIN.read(states, query)
            torch.testing.assert_close(found.logits, expected.logits)
            torch.testing.assert_close(found.first_logits, expected.first_logits)
            assert torch.equal(
                MEMORY.generate(states, query, max_new_tokens=4),
                PLAIN.generate(states, query, max_new_tokens=4),
            )
            assert cache.nbytes == len(cache) * BYTES <= cache.max_bytes


def test_a_memory_goes_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.prefills = PrefillCache()
    query = Tokens.from_rows([[5, 6]] * 2)
    passes = Passes(MEMORY, monkeypatch)
    with torch.no_grad():
        for rows, new in (([0, 1], 2), ([1, 0], 0), ([0, 0], 0), ([0, 2], 1)):
            before = passes.positions
            MEMORY.read(STATES.rows(torch.tensor(rows)), query)
            assert passes.positions - before == 3 * new + 2 * 2
    MEMORY.prefills.clear()
    assert (len(MEMORY.prefills), MEMORY.prefills.nbytes) == (0, 0)


def test_the_least_recently_read_is_dropped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.prefills = PrefillCache(2 * BYTES)
    query = Tokens.from_rows([[5]])
    passes = Passes(MEMORY, monkeypatch)
    with torch.no_grad():
        for row, new in ((0, 1), (1, 1), (0, 0), (2, 1), (0, 0), (1, 1)):
            before = passes.positions
            MEMORY.read(STATES.rows(slice(row, row + 1)), query)
            assert passes.positions - before == 3 * new + 1


def test_other_weights_are_another_memory() -> None:
    """Training between two questions does not leave old answers behind."""
    memory = build(trainable=True)
    memory.prefills = PrefillCache()
    query = Tokens.from_rows([[5, 6]])
    state = STATES.rows(slice(0, 1))
    with torch.no_grad():
        before = memory.read(state, query).logits
        for weight in memory.model.parameters():
            weight.mul_(1.1)
        after = memory.read(state, query).logits
        memory.prefills = None
        torch.testing.assert_close(after, memory.read(state, query).logits)
    assert (before - after).abs().max() > 1e-3


def test_whatever_changes_the_numbers_is_in_the_key() -> None:
    """A memory that was prefilled under dropout or autocast is not served to reads without it."""
    model = MODELS["gpt2"]
    memory = Memory.from_config(
        {
            "backbone": {**model, "params": {**model["params"], "embd_pdrop": 0.5, "resid_pdrop": 0.5}},
            "writer": {"name": "forward", "params": {"slots": 3}},
            "reader": {"name": "prefix"},
        }
    )  # fmt: skip
    state, query = memory.write("a boat").state, Tokens.from_rows([[5, 6]])
    with torch.no_grad():
        expected = memory.read(state, query).logits
        answer = memory.generate(state, query, max_new_tokens=4)
        for step in ("train", "generate", "autocast", "block"):
            memory.prefills = PrefillCache()
            if step == "train":
                memory.train().read(state, query)
            elif step == "generate":
                assert torch.equal(memory.train().generate(state, query, max_new_tokens=4), answer)
                assert memory.model.training
            elif step == "autocast":
                with torch.autocast("cpu", torch.bfloat16):
                    memory.read(state, query)
            else:  # one module alone, as in partial fine-tuning
                memory.model.transformer.drop.train()
                memory.read(state, query)
            memory.eval()
            assert torch.equal(memory.read(state, query).logits, expected), step
            assert torch.equal(memory.generate(state, query, max_new_tokens=4), answer)


def test_generation_leaves_every_mode_as_it_was() -> None:
    """A model that trains may have parts that do not."""
    memory = build(trainable=True).train()
    memory.model.lm_head.eval()
    memory.generate(STATES.rows(slice(0, 1)), max_new_tokens=2)
    assert memory.model.training
    assert not memory.model.lm_head.training


def test_gradients_do_not_stop_at_the_cache() -> None:
    memory = build()
    memory.prefills = PrefillCache()
    tensor = STATES["memory"][:1].clone().requires_grad_()
    state = MemoryState(STATES.spec, {"memory": tensor})
    query = Tokens.from_rows([[5, 6]])
    for _ in range(2):
        memory.read(state, query).logits.sum().backward()
    assert tensor.grad is not None
    assert tensor.grad.abs().max() > 0
    assert len(memory.prefills) == 0


def test_corrections_come_along() -> None:
    """A memory without a prefix has nothing to keep."""
    memory = build("lora")
    memory.prefills = PrefillCache()
    state = memory.write(TEXTS[:1]).state
    query = Tokens.from_rows([[5, 6]])
    with torch.no_grad():
        found = memory.read(state, query).logits
        memory.prefills = None
        assert torch.equal(found, memory.read(state, query).logits)


def test_many_memories_answer_at_once() -> None:
    prompts = ["a", "bcd", "", "bc"]
    for memory in (PLAIN, MEMORY):
        together = memory.ask(STATES, prompts, max_new_tokens=5)
        alone = [
            memory.ask(STATES.rows(slice(row, row + 1)), prompt, max_new_tokens=5)
            for row, prompt in enumerate(prompts)
        ]
        assert together == alone
    assert MEMORY.ask(STATES.rows(slice(0, 0)), []) == []
    with pytest.raises(InputError, match="4 rows, but 3"):
        MEMORY.ask(STATES, prompts[:3])


def test_threads_share_a_memory() -> None:
    """Eight of them write, read and ask at once, through one small cache; each gets what it would get alone."""
    MEMORY.prefills = PrefillCache(2 * BYTES)

    def work(number: int) -> list[Any]:
        row = number % 4
        state = MEMORY.write(TEXTS[row]).state
        with torch.no_grad():
            logits = MEMORY.read(state, Tokens.from_rows([[row, 7]])).logits
        return [state["memory"], logits, MEMORY.ask(state, "ab", max_new_tokens=4)]

    expected = [work(number) for number in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(work, range(48))):
            state, logits, answer = expected[number % 4]
            torch.testing.assert_close(found[0], state)
            torch.testing.assert_close(found[1], logits)
            assert found[2] == answer
    assert MEMORY.prefills.nbytes <= 2 * BYTES


def test_a_cache_has_a_size() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        PrefillCache(-1)
