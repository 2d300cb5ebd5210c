"""benchmarks/mean_state.py: a gradient writer begins where its model reads the states of another writer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import ragged
import torch
import yaml
from click.testing import CliRunner

from memwrite import Memory, Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig
from memwrite.training.run import train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from mean_state import main as mean_state


def described(tmp_path: Path, out: str, writer: dict[str, Any], **training: object) -> Any:
    """A config that corrects a model which is in a folder, or trains it."""
    config = ragged.described(tmp_path / out, steps=2, **training)
    return config | {"writer": writer, "reader": {"name": "prefix"}}


@pytest.mark.parametrize("corrected", [True, False])
def test_slots_begin_at_the_mean_of_another_writers_states(
    tmp_path: Path, corrected: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of contexts written one by one, in the order in which training draws them; around the model that wrote them."""
    ragged.install()
    forward = described(tmp_path, "forward", {"name": "forward", "params": {"slots": 2}})
    if corrected:
        built = load_backbone(BackboneConfig(**{**forward["backbone"], "trainable": False}))
        built.save(tmp_path / "base", torch.float64)
        base = {"path": str(tmp_path / "base"), "attention": "eager", "lora_rank": 2}
        forward["backbone"] = base | {"dtype": "float64"}
    run = train(forward)
    writer = {"name": "gradient", "params": {"slots": 2, "lr": 3.0, "learned_lr": "each"}}
    gradient = described(tmp_path, "gradient", writer, start=str(run))
    gradient["backbone"] = forward["backbone"]
    (tmp_path / "gradient.yaml").write_text(yaml.safe_dump(gradient))
    argv = [str(tmp_path / "gradient.yaml"), "--contexts=5", f"--out={tmp_path / 'mean'}"]
    done = CliRunner().invoke(mean_state, [*argv, "training.batch_size=2"])
    assert done.exit_code == 0, done.output
    wrote, found = Memory.from_config(run).eval(), Memory.from_config(tmp_path / "mean").eval()
    examples = ragged.Ragged(0.0).training(5, 0)
    each = [wrote.write(Tokens.from_rows([examples[i].context])).state["memory"] for i in range(5)]
    start = found.writer.init(1)["memory"].detach()
    torch.testing.assert_close(start, torch.stack(each).mean(0), atol=1e-9, rtol=1e-9)
    assert float((torch.stack(each) - start).norm()) > 1e-3
    torch.testing.assert_close(found.writer.log_lr.exp(), torch.full_like(start[0], 3.0))
    weights = wrote.model.state_dict()
    for name, weight in found.model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], atol=1e-6, rtol=1e-6)
    capsys.readouterr()
    train(gradient | {"training": gradient["training"] | {"start": str(tmp_path / "mean")}})
    assert "not in it" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.start=null", "a gradient writer, with a training.start"),
        ("writer={name: forward, params: {slots: 2}}", "to be of a gradient writer"),
        ("writer.params.slots=3", "writes 2 vectors, and the gradient writer has 3"),
        ("task=null", "has no task"),
    ],
)
def test_what_can_be_no_start_is_said_in_a_sentence(
    tmp_path: Path, override: str, message: str
) -> None:
    ragged.install()
    run = train(described(tmp_path, "forward", {"name": "forward", "params": {"slots": 2}}))
    writer = {"name": "gradient", "params": {"slots": 2}}
    gradient = described(tmp_path, "gradient", writer, start=str(run))
    (tmp_path / "gradient.yaml").write_text(yaml.safe_dump(gradient))
    argv = [str(tmp_path / "gradient.yaml"), override, f"--out={tmp_path / 'mean'}"]
    done = CliRunner().invoke(mean_state, argv)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("\u2502", " ").split())
    assert not (tmp_path / "mean").exists()


def test_a_writer_of_other_states_is_no_start(tmp_path: Path) -> None:
    ragged.install()
    delta = described(tmp_path, "delta", {"name": "delta", "params": {"rank": 2}})
    run = train(delta | {"reader": {"name": "lora"}})
    writer = {"name": "gradient", "params": {"slots": 2}}
    gradient = described(tmp_path, "gradient", writer, start=str(run))
    (tmp_path / "gradient.yaml").write_text(yaml.safe_dump(gradient))
    argv = [str(tmp_path / "gradient.yaml"), f"--out={tmp_path / 'mean'}"]
    done = CliRunner().invoke(mean_state, argv)
    assert done.exit_code == 2
    assert "writes no prefixes" in " ".join(done.output.replace("\u2502", " ").split())
    assert not (tmp_path / "mean").exists()
