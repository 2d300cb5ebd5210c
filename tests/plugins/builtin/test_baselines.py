"""The baselines: parts of a context kept one after another, and nothing at all."""

from __future__ import annotations

import torch
from support import Build

from memwrite import Tokens


def test_writing_the_full_context_in_two_parts_is_writing_it_once(build: Build) -> None:
    memory = build("full-context", "key-value")
    first, second = Tokens.from_rows([[1, 2, 3], [4]]), Tokens.from_rows([[5], [6, 7]])
    state = memory.write(second, memory.write(first).state).state
    whole = memory.write(Tokens.from_rows([[1, 2, 3, 5], [4, 6, 7]])).state
    query = Tokens.from_rows([[8, 9], [10]])
    parts, once = (memory.read(s, query).logits for s in (state, whole))
    torch.testing.assert_close(parts, once, atol=1e-5, rtol=1e-5)
    assert state["next_position"].tolist() == whole["next_position"].tolist() == [4, 3]


def test_without_any_memory_a_text_is_opened(build: Build) -> None:
    """No memory and no query: generation starts from the start token, as the plain model does."""
    for memory in (build(), build("full-context", "key-value")):
        state = memory.writer.init(1)
        opened = memory.model(torch.tensor([[memory.backbone.info.bos_id]])).logits
        assert memory.generate(state, max_new_tokens=1).tolist() == [[int(opened[0, -1].argmax())]]


def test_global_randomness_is_left_alone(build: Build) -> None:
    """Building, writing and reading draw nothing from the global generator."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    memory = build("gradient", "prefix")
    memory.generate(memory.write("some text").state, max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)
