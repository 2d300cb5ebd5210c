"""A run folder holds one run: nothing of another that was there before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support import MODELS

from memwrite import Memory
from memwrite.backbones.tokenizers import train_bpe
from memwrite.checkpoints.state_file import save_state

SLOTS = {"writer": {"name": "gradient", "params": {"slots": 2}}, "reader": {"name": "prefix"}}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def with_a_tokenizer(folder: Path) -> Memory:
    """Make a memory whose backbone has a tokenizer of its own, and so files of it."""
    train_bpe(["the boat is blue"] * 9, 270).save(folder)
    params = {**MODELS["llama"]["params"], "vocab_size": 270}
    backbone = {"type": "llama", "params": params, "tokenizer": str(folder)}
    return Memory.from_config({"backbone": backbone, **SLOTS})


def test_a_run_over_another_leaves_nothing_of_it(tmp_path: Path) -> None:
    """A tokenizer that stays behind would give the new model's ids other texts."""
    memory: Any = with_a_tokenizer(tmp_path / "tokenizer")
    memory.save_run(tmp_path / "run")
    assert "backbone/tokenizer.json" in files(tmp_path / "run")
    plain = Memory.from_config({"backbone": MODELS["llama"]})
    plain.save_run(tmp_path / "run")
    plain.save_run(tmp_path / "fresh")
    assert files(tmp_path / "run") == files(tmp_path / "fresh")
    again = Memory.from_config(tmp_path / "run")
    assert again.backbone.fingerprint == plain.backbone.fingerprint
    assert again.backbone.tokenizer.encode("boat") == list(b"boat")


def test_a_run_of_a_backbone_elsewhere_leaves_no_other_behind(tmp_path: Path) -> None:
    with_a_tokenizer(tmp_path / "tokenizer").save_run(tmp_path / "run")
    base = Memory.from_config({"backbone": MODELS["gpt2"]})
    base.save_run(tmp_path / "base")
    memory = Memory.from_config({"backbone": {"path": str(tmp_path / "base")}, **SLOTS})
    memory.save_run(tmp_path / "run")
    assert files(tmp_path / "run") == ["config.yaml", "weights.safetensors"]
    again = Memory.from_config(tmp_path / "run")
    assert again.backbone.fingerprint == base.backbone.fingerprint


def test_a_run_is_saved_over_itself(tmp_path: Path) -> None:
    """Its backbone, which is read from there, stays."""
    with_a_tokenizer(tmp_path / "tokenizer").save_run(tmp_path / "run")
    memory = Memory.from_config(tmp_path / "run")
    before = files(tmp_path / "run")
    memory.save_run(tmp_path / "run")
    assert files(tmp_path / "run") == before
    again = Memory.from_config(tmp_path / "run")
    assert again.backbone.fingerprint == memory.backbone.fingerprint


def test_a_linked_model_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "README").write_text("of somebody else")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "backbone").symlink_to(tmp_path / "shared")
    Memory.from_config({"backbone": MODELS["gpt2"]}).save_run(tmp_path / "run")
    assert files(tmp_path / "shared") == ["README"]
    Memory.from_config(tmp_path / "run")


@pytest.mark.parametrize("umask", [0, 0o022])
def test_a_state_file_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    """Whoever has it and the model has the text."""
    memory = Memory.from_config({"backbone": MODELS["gpt2"], **SLOTS})
    file = memory.state_file(memory.write("a secret").state)
    old = os.umask(umask)
    try:
        save_state(tmp_path / "doc.st", file)
    finally:
        os.umask(old)
    assert (tmp_path / "doc.st").stat().st_mode & 0o777 == 0o600
