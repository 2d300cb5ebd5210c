"""A batch in parts trains as the whole does: one after the other, or in several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ragged

from memwrite.errors import ConfigError
from memwrite.training.run import train

SHARED = ("step", "exact_match", "stage", "eval_exact_match")
TIMES = (
    "seconds",
    "cpu_seconds",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
)


@pytest.fixture(autouse=True)
def _task() -> None:
    ragged.install()


def test_parts_of_a_batch_one_after_the_other(tmp_path: Path) -> None:
    """Weights, losses and the curriculum's exact match are those of whole batches, though the parts have different
    numbers of queries and labels.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(ragged.described(whole))
    train(ragged.described(parts, accumulate=4))
    assert ragged.distance(whole, parts) < 1e-10
    entries, again = log(whole), log(parts)
    assert entries[0]["loss"] == pytest.approx(again[0]["loss"], rel=1e-7)
    assert entries[0]["exact_match"] == again[0]["exact_match"] > 0
    assert entries[0]["stage"] == again[0]["stage"] > 1


def log(run: Path) -> list[dict[str, Any]]:
    """The entries of its log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with everything that the driver trained."""
    folder = tmp_path_factory.mktemp("runs")
    driver = Path(__file__).parents[1] / "training_driver.py"
    done = subprocess.run(
        [sys.executable, driver, folder], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_train_as_one(runs: Path) -> None:
    """Each in two parts."""
    assert ragged.distance(runs / "one", runs / "two") < 1e-10
    entries, again = (log(runs / name) for name in ("one", "two"))
    for entry, other in zip(entries, again, strict=True):
        assert [entry.get(key) for key in SHARED] == [other.get(key) for key in SHARED]
    assert max(entry.get("stage", 0) for entry in entries) > 1


def test_two_processes_resume_exactly(runs: Path) -> None:
    """One was killed within a checkpoint, then the other."""
    assert ragged.same(runs / "two", runs / "two_killed")


def test_a_training_that_is_killed_over_and_over_ends_the_same(runs: Path) -> None:
    """In three stages, with dropout, and by LoRA: weights and log are those of a run that nobody disturbed."""
    for stage in ("stages/1", "stages/2", "."):
        assert ragged.same(runs / "whole" / stage, runs / "killed" / stage)
    entries, again = (log(runs / name) for name in ("whole", "killed"))
    for entry, other in zip(entries, again, strict=True):
        assert {k: v for k, v in entry.items() if k not in TIMES} == {
            k: v for k, v in other.items() if k not in TIMES
        }
    assert [e["training_stage"] for e in entries if "loss" in e] == [1, 1, 2, 2, 3]
    assert entries[-1]["reached"]
    found = (
        sorted(p.relative_to(runs / name) for p in (runs / name).rglob("*"))
        for name in ("whole", "killed")
    )
    assert next(found) == next(found)


def test_parts_must_be_equal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        train(ragged.described(tmp_path / "run", accumulate=3))
