"""`memwrite write --onto` and `memwrite forget`: texts into a state file, one by one, and out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from support import MODELS

from memwrite.checkpoints.state_file import load_state
from memwrite.cli.main import main

TEXTS = {"ava": "The boat is called Ava.", "blue": "It is blue."}


def run(words: str) -> Result:
    return CliRunner().invoke(main, words.split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with texts, the config of a writer that forgets, and one of a writer that cannot."""
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    for writer in ("ridge", "mesa"):
        parts = {"writer": {"name": writer}, "reader": {"name": "lora"}}
        config = yaml.safe_dump({"backbone": MODELS["llama"], **parts})
        (tmp_path / f"{writer}.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_text_goes_in_and_out_again(folder: Path) -> None:
    assert run("write ridge.yaml --context ava --out one.st").exit_code == 0
    assert run("write ridge.yaml --context blue --onto one.st --out both.st").exit_code == 0
    done = run("forget ridge.yaml --context blue --state both.st --out left.st")
    assert done.exit_code == 0, done.output
    assert "11 bytes of text (12 tokens) forgotten -> left.st" in done.stdout
    assert "condition number" in done.stdout
    one, both, left = (load_state(f"{name}.st").state for name in ("one", "both", "left"))
    assert not torch.allclose(both["S"], one["S"], atol=1e-3)
    for name in ("S", "G"):
        torch.testing.assert_close(left[name], one[name], atol=1e-6, rtol=0)


def test_forget_reports_as_json(folder: Path) -> None:
    run("write ridge.yaml --context ava --out one.st")
    done = run("forget ridge.yaml --context ava --state one.st --out left.st --json")
    report = json.loads(done.stdout)
    assert report["tokens"] == 24
    assert report["condition"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("forget mesa.yaml --context ava --state mesa.st --out x.st", "writer 'mesa' cannot take"),
        ("forget ridge.yaml --context blue --state ridge.st --out x.st", "has not read this"),
        ("forget ridge.yaml --context ava --state mesa.st --out x.st", "another reader"),
        ("forget ridge.yaml --context ava --state ridge.st --out ridge.st", "it is also read"),
        ("forget ridge.yaml --context ava --out x.st", "Missing option '--state'"),
        ("write ridge.yaml --context ava --onto none.st --out x.st", "none.st"),
        ("write ridge.yaml --input ava --onto ridge.st --out x.db", "--onto goes with --context"),
    ],
)
def test_what_cannot_be_done_is_said(folder: Path, words: str, said: str) -> None:
    for writer in ("ridge", "mesa"):
        assert run(f"write {writer}.yaml --context ava --out {writer}.st").exit_code == 0
    done = run(words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert not (folder / "x.st").exists()
