"""Training that starts from another run, goes through stages, and ends when enough is learnt."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import ragged
import torch
import yaml
from support import MODELS

from memwrite import Memory
from memwrite.backbones.tokenizers import load_tokenizer
from memwrite.errors import ConfigError, PluginNotFound
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.training.progress import Advance
from memwrite.training.run import train


@pytest.fixture(autouse=True)
def _task() -> None:
    ragged.install()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, its backbone trained."""
    ragged.install()
    return train(short(tmp_path_factory.mktemp("start") / "run"))


def short(out: Path, **training: Any) -> dict[str, Any]:
    """One step, which moves nothing that could be seen."""
    return ragged.described(out, **{"steps": 1, "learning_rate": 1e-12, **training})


def near(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.shape == two.shape and bool(torch.allclose(one, two, atol=1e-9, rtol=0))


def test_a_training_starts_from_another_run(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With all of its weights, whatever the seed; and nobody needs that run afterwards."""
    start = tmp_path / "start"
    shutil.copytree(run, start)
    out = train({**short(tmp_path / "run", start=str(start)), "seed": 7})
    assert "Started" not in capfd.readouterr().err
    assert ragged.distance(run, out) < 1e-9
    assert yaml.safe_load((out / "config.yaml").read_text())["training"]["start"] == str(start)
    shutil.rmtree(start)
    Memory.from_config(out)


def test_weights_that_do_not_fit_are_named(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another number of slots and one layer less: the rest is taken."""
    config = short(tmp_path / "run", start=str(run))
    config["writer"]["params"] |= {"slots": 3, "learned_lr": "one"}
    config["backbone"]["params"]["n_layer"] = 1
    out = train(config)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Started")]
    assert len(lines) == 1
    assert "of another shape: writer.fast.slots" in lines[0]
    assert "not in it: writer.log_lr" in lines[0]
    assert "not needed here: backbone.transformer.h (12)" in lines[0]
    old, new = ragged.weights(run), ragged.weights(out)
    assert {n for n in new if not (n in old and near(new[n], old[n]))} == {
        "writer.fast.slots",
        "writer.log_lr",
    }


def test_a_frozen_backbone_of_a_folder_becomes_that_of_the_start(run: Path, tmp_path: Path) -> None:
    """And the run holds it, though the config names another."""
    other = Memory.from_config({**short(tmp_path / "other"), "seed": 3})
    other.save_run(tmp_path / "other")
    config = short(tmp_path / "run", start=str(run))
    config["backbone"] = {"path": str(tmp_path / "other"), "dtype": "float64", "attention": "eager"}
    out = train(config)
    assert ragged.distance(run, out) < 1e-9
    assert (
        Memory.from_config(out).backbone.fingerprint == Memory.from_config(run).backbone.fingerprint
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.start=nowhere"], "not the folder of a finished run"),
        (["training.until=1.5"], "training.until"),
        (["training.accumulate=0"], "training.accumulate"),
        (["training.bf16=true"], "bf16 needs a GPU"),
        (["backbone.lora_rank=2"], "set one of them"),
        (
            ["training.stages=[{overrides: [training.out=x]}]"],
            "stage 1 .* cannot change training.out",
        ),
        (["training.stages=[{overrides: [writer.name=gradiant]}]"], "did you mean 'gradient'"),
        (
            ["training.stages=[{}, {overrides: [writer.params.slot=1]}]"],
            "stage 2 .*writer.params.slot",
        ),
        (["training.stages=[{overrides: [seed]}]"], "stage 1 .*not of the form"),
        (["training.stages=[{override: []}]"], "override"),
    ],
)
def test_wrong_configs_are_refused_before_anything_is_trained(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises((ConfigError, PluginNotFound), match=message):
        train(short(tmp_path / "run"), overrides)
    assert not list(tmp_path.rglob("log.jsonl"))


def test_a_run_of_which_nothing_fits(run: Path, tmp_path: Path) -> None:
    config = short(tmp_path / "run", start=str(run))
    config["backbone"] |= {
        "type": "llama",
        "params": {**MODELS["llama"]["params"], "hidden_size": 24},
    }
    config |= {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    with pytest.raises(ConfigError, match=r"no weight of .* fits: not in it: backbone\.model"):
        train(config)
    train(short(tmp_path / "run", start=str(run)))  # the folder was not taken


def test_training_ends_when_enough_is_learnt(tmp_path: Path) -> None:
    out = train(ragged.described(tmp_path / "run", every=1, steps=50, until=0.5))
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    evaluations = [entry for entry in entries if "eval_exact_match" in entry]
    assert [entry["reached"] for entry in evaluations] == [
        *[False] * (len(evaluations) - 1),
        True,
    ]
    assert len(evaluations) < 20
    assert evaluations[-1]["eval_exact_match"] >= evaluations[-1]["until"] == 0.5


def test_tensorboard_has_what_the_log_has(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = train(ragged.described(tmp_path / "run", steps=2, every=1, tensorboard=True))
    found = EventAccumulator(str(out / "tensorboard")).Reload()
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for tag, key in {
        "train/loss": "loss",
        "train/grad_norm": "grad_norm",
        "train/learning_rate": "learning_rate",
        "train/exact_match": "exact_match",
        "train/stage": "stage",
        "eval/exact_match": "eval_exact_match",
    }.items():
        said = [(entry["step"], pytest.approx(entry[key])) for entry in entries if key in entry]
        assert [(event.step, event.value) for event in found.Scalars(tag)] == said


def test_tensorboard_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'memwrite\[tensorboard\]'"):
        train(short(tmp_path / "run", tensorboard=True))


def test_the_running_exact_match_is_a_mean_from_the_first_batch_of_a_stage_on() -> None:
    batch_size, share = 4, torch.tensor(0.8)
    task = KeyValueTask(
        KeyValueConfig(pairs=2, curriculum=[1], advance=0.4), load_tokenizer("characters")
    )
    advance, told = Advance(task, batch_size), []
    for done in range(40):
        advance.step(share, done)
        told.append(advance.report(done + 1))
    left = [report["stage"] for report in told].index(2)
    assert 0 < left < 39
    assert told[left] == {"exact_match": 0.0, "stage": 2}
    assert {report["exact_match"] for report in told[:left] + told[left + 1 :]} == {0.8}
