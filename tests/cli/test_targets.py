"""`memwrite write --out` and `memwrite store get --out`: nothing but a state file is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support import MODELS

from memwrite.checkpoints.state_file import load_state
from memwrite.cli.main import main
from memwrite.memory import Memory
from memwrite.stores import Store

CONFIG = {
    "backbone": MODELS["gpt2"],
    "writer": {"name": "gradient", "params": {"slots": 2}},
    "reader": {"name": "prefix"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a text, a configuration and a store, and work in it."""
    (tmp_path / "text").write_text("The boat is blue.")
    (tmp_path / "link").symlink_to("text")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    memory = Memory.from_config(CONFIG)
    with Store(tmp_path / "s.db") as store:
        store.put("a", memory, memory.write("The boat is blue.").state)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("write config.yaml --context text --out text", "it is also read"),
        ("write config.yaml --context text --out link", "it is also read"),
        ("write config.yaml --context text --out config.yaml", "it is also read"),
        ("write config.yaml --context text --out /dev/null", "it is no regular file"),
        ("write config.yaml --context text --out .", "it is no regular file"),
        ("write config.yaml --context text --out none/a.st", "there is no folder"),
        ("store get s.db a --out s.db", "it is also read"),
    ],
)
def test_what_is_no_place_for_a_state_is_refused(folder: Path, words: str, reason: str) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = CliRunner().invoke(main, words.split())
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert reason in done.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_link_stays_a_link_to_the_new_state(folder: Path) -> None:
    (folder / "old").mkdir()
    (folder / "doc.st").symlink_to("old/doc.st")
    for words in ("write config.yaml --context text", "store get s.db a"):
        done = CliRunner().invoke(main, [*words.split(), "--out", "doc.st"])
        assert done.exit_code == 0, done.output
        assert (folder / "doc.st").is_symlink()
        load_state(folder / "old" / "doc.st")
        (folder / "old" / "doc.st").unlink()
