"""A memory under a benchmark's hands: reset, feed, answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from samples import LONGMEMEVAL
from support import MODELS

from memwrite import Memory
from memwrite.errors import InputError
from memwrite.evaluation.agent import MemoryAgent

FIRST, SECOND = "I keep 12 bees.", "It rains."


def memory(writer: str = "full-context", reader: str = "key-value") -> Memory:
    parts = {"writer": {"name": writer}, "reader": {"name": reader}}
    return Memory.from_config({"backbone": MODELS["llama"], **parts})


def test_an_agent_knows_what_it_was_fed_and_nothing_of_what_it_was_asked() -> None:
    own = memory("ridge", "lora").train()
    agent = MemoryAgent(own, max_new_tokens=5)
    blank = agent.answer("Who?")
    for entry in LONGMEMEVAL:
        agent.reset()
        fed = [turn["content"] for session in entry["haystack_sessions"] for turn in session]
        for text in fed:
            agent.feed(text)
        with torch.no_grad():
            state = None
            for text in fed:
                state = own.write(text, state).state
        assert state is not None
        assert all(torch.equal(agent.state[name], state[name]) for name in state.tensors)
        said = [agent.answer(entry["question"]) for _ in range(2)]
        assert said == [own.ask(state, entry["question"], max_new_tokens=5)] * 2
    assert own.training
    assert not any(tensor.requires_grad for tensor in agent.state.tensors.values())
    agent.reset()
    assert agent.answer("Who?") == blank


def test_an_agent_must_be_able_to_write(tmp_path: Path) -> None:
    own = memory()
    own.save(own.write(FIRST).state, tmp_path / "state")
    with pytest.raises(InputError, match="can write"):
        MemoryAgent(Memory.load(tmp_path / "state", force=True)[0])
    with pytest.raises(InputError, match="empty"):
        MemoryAgent(own).feed(" ")
