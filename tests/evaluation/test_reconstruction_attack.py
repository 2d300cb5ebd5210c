"""What a state reveals is told: to the letter where the memory is good, nothing where nothing was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from memwrite import Memory, MemoryState
from memwrite.cli.main import main
from memwrite.evaluation.reconstruction_attack import audit
from memwrite.stores import Store

ROOT = Path(__file__).resolve().parents[2]
SECRET = "The boat is called Ava and sails at dawn."
#: Longer than the model has positions.
OTHER = "Nothing of this was ever written into it. " * 40


@pytest.fixture(scope="module")
def crammed() -> tuple[Memory, MemoryState]:
    memory = Memory.from_config(
        ROOT / "configs" / "cram.yaml", [f"backbone.path={ROOT / 'models' / 'tiny-lm'}"]
    )
    return memory, memory.write(SECRET).state


def test_a_good_memory_gives_its_text_away(crammed: tuple[Memory, MemoryState]) -> None:
    memory, state = crammed
    found = audit(memory, state, ["The boat"], SECRET)
    assert found.found[0].text.strip() == SECRET
    assert found.found[0].bits > 30
    assert any(one.prompt == "The boat" and "Ava" in one.text for one in found.found)
    assert found.original is not None
    assert found.original.bytes_right > 0.95
    assert 30 < found.original.bits_revealed < found.original.bits


def test_an_empty_one_has_nothing_to_give(crammed: tuple[Memory, MemoryState]) -> None:
    """What the model says of itself is told from what it was told."""
    memory, state = crammed
    empty = state.map(lambda tensor: 0 * tensor)
    found = audit(memory, empty, [], SECRET)
    assert all(one.bits <= 0 for one in found.found)
    assert found.original is not None
    assert found.original.bits_revealed <= 0
    assert found.original.bytes_right < 0.9
    own, other = (audit(memory, state, [], text).original for text in (SECRET, OTHER))
    assert own is not None
    assert other is not None
    assert other.bits_revealed / other.bits < 0.1 < 0.5 < own.bits_revealed / own.bits


def test_the_command_tells_what_the_function_finds(
    crammed: tuple[Memory, MemoryState], tmp_path: Path
) -> None:
    memory, state = crammed
    memory.save(state, tmp_path / "doc.st")
    with Store(tmp_path / "docs.db") as store:
        store.put("doc", memory, state)
    (tmp_path / "text").write_text(SECRET)
    whole = ["audit", str(tmp_path / "doc.st"), "--context", str(tmp_path / "text")]
    one = ["audit", str(tmp_path / "docs.db"), "--key", "doc", "--max-new-tokens", "30"]
    said = CliRunner().invoke(main, whole)
    assert said.exit_code == 0, said.output
    assert SECRET in said.output
    assert "of the text's bytes came back" in said.output
    told = json.loads(CliRunner().invoke(main, [*one, "--json"]).output)
    assert told["state_bytes"] == state.nbytes
    assert told["found"][0]["text"].strip() == SECRET
    assert told["original"] is None
