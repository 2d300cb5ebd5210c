"""Files of older versions open for ever; `data/v1` holds some, with what was answered from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from memwrite import Memory, MemoryState, Tokens
from memwrite.stores import Store

DATA = Path(__file__).parent / "data" / "v1"
ANSWERS: dict[str, Any] = json.loads((DATA / "answers.json").read_text())
STORED = sorted(set(ANSWERS) - {"full-context"})
TEXT = "The boat is blue."


def check_answers(name: str, memory: Memory, state: MemoryState) -> None:
    """Compare logits and generated text with what the older version gave."""
    logits = memory.read(state, Tokens.from_rows([list(b"The ")])).logits[0, -1, :8]
    expected = torch.tensor(ANSWERS[name]["logits"])
    torch.testing.assert_close(logits.detach(), expected, atol=1e-5, rtol=0)
    assert memory.ask(state, "The ", max_new_tokens=8) == ANSWERS[name]["ask"]


@pytest.fixture(params=["sqlite", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Yield a copy of an old store: SQLite makes files beside the one that it reads."""
    if request.param == "sqlite":
        place = shutil.copy(DATA / "store.db", tmp_path)
    else:
        place = f"file://{shutil.copytree(DATA / 'store', tmp_path / 'store')}"
    with Store(place, make=False) as store:
        yield store


@pytest.mark.parametrize("name", ANSWERS)
def test_state_files_open_and_answer_as_before(name: str) -> None:
    check_answers(name, *Memory.load(DATA / f"{name}.safetensors"))


@pytest.mark.parametrize("name", STORED)
def test_stored_memories_open_and_answer_as_before(name: str, store: Store) -> None:
    check_answers(name, *store.load(f"user/{name}"))


def test_stores_list_what_they_held(store: Store) -> None:
    entries = {entry.key: entry for entry in store.list()}
    assert sorted(entries) == ["gone", *(f"user/{name}" for name in STORED)]
    assert [key for key, entry in entries.items() if entry.expires] == ["gone"]


@pytest.mark.parametrize("name", ["gradient", "delta"])
def test_run_folders_open_and_write_as_before(name: str) -> None:
    memory = Memory.from_config(DATA / f"run-{name}")
    check_answers(name, memory, memory.write(TEXT).state)
