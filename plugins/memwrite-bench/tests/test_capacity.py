"""The capacity report: cells and their files, and a grid that processes share."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from capacity_runs import (
    fake_result,
    fake_run,
    save,
    toy_runs,
)
from memwrite_bench.capacity import cells, grid
from memwrite_bench.capacity.cells import Cell, load, measure
from memwrite_bench.capacity.cells import Result as Measured
from memwrite_bench.capacity.grid import fill, path_of, plan
from memwrite_bench.capacity.runs import Run, open_runs, training_digest

from memwrite import Memory
from memwrite.config import load_config, to_dict
from memwrite.errors import InputError
from memwrite.evaluation.key_value import evaluate
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return toy_runs(tmp_path_factory.mktemp("runs"))


# ---- cells -------------------------------------------------------------------------------------


def test_a_cell_is_what_the_evaluation_says_and_what_the_tensors_weigh(runs: list[Path]) -> None:
    [run] = open_runs(runs[:1])
    memory = run.memory(1)
    result = measure(Cell(run, 3, 1, seed=5, contexts=4), memory)
    fresh = KeyValueTask(KeyValueConfig(pairs=3), memory.backbone.tokenizer).fresh(4, 5)
    assert result.outcome == "measured"
    assert result.recall == evaluate(memory, fresh)
    assert (result.recall.state_floats, result.recall.state_bytes) == (32, 128)
    assert result.cost is not None
    length = len(fresh[0].context)
    assert result.cost.kv_bytes == 2 * length * 16 * 4 + length + 8
    assert (result.cost.single.batch, result.cost.batched.batch) == (1, 4)
    for seconds in (result.cost.single, result.cost.batched):
        assert all(value and 0 < value < 60 for value in to_dict(seconds).values())


def test_steps_are_those_asked_for(runs: list[Path]) -> None:
    [run] = open_runs(runs[:1])
    assert run.steps == (1, 2)
    for steps in (1, 3):
        memory = run.memory(steps)
        assert memory.writer.config.most_steps is None
        assert len(memory.write("!ab:cd!|").trace["accuracy"]) == steps


@pytest.mark.parametrize(
    ("pairs", "reason"), [(9, "66 positions"), (4000, "3844 keys")], ids=["positions", "keys"]
)
def test_too_long_is_said_and_not_dropped(runs: list[Path], pairs: int, reason: str) -> None:
    """Nine pairs are 64 tokens, and the two slots want positions too; the context alone would fit."""
    [run] = open_runs(runs[:1])
    result = measure(Cell(run, pairs, 1, 0, 2), run.memory(1))
    assert (result.outcome, result.recall, result.cost) == ("too long", None, None)
    assert reason in result.reason


def test_a_context_that_fits_without_its_queries_is_measured(runs: list[Path]) -> None:
    """But the full context is not, which needs the positions behind it."""
    [gradient, full] = open_runs([runs[0], runs[3]])
    result = measure(Cell(gradient, 8, 1, 0, 2), gradient.memory(1))
    assert result.recall is not None
    assert result.recall.full_context is None
    assert result.cost is not None
    assert (result.cost.kv_bytes, result.cost.single.prefill) == (None, None)
    assert measure(Cell(full, 8, None, 0, 2), full.memory(None)).outcome == "too long"


def test_divergence_is_a_result(tmp_path: Path) -> None:
    params = {"slots": 2, "steps": 3, "lr": 1e38, "init_std": 1e-4}
    writer = {"name": "gradient", "params": params}
    [run] = open_runs([save(tmp_path / "wild", writer=writer)])
    result = measure(Cell(run, 2, 3, 0, 4), run.memory(3))
    assert (result.outcome, result.recall, result.cost) == ("diverged", None, None)
    assert "diverged at step 1" in result.reason
    assert Measured.from_dict(json.loads(cells.as_json(result))) == result


# ---- runs --------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_what_the_run_is(runs: list[Path], tmp_path: Path) -> None:
    """Not of where it lies; other weights are another run."""
    moved = tmp_path / "moved"
    shutil.copytree(runs[0], moved)
    [own, copy] = [open_runs([folder])[0] for folder in (runs[0], moved)]
    assert own.fingerprint == copy.fingerprint
    with pytest.raises(InputError, match="count twice"):
        open_runs([runs[0], moved])
    memory = Memory.from_config(moved)
    with torch.no_grad():
        next(memory.writer.parameters()).add_(1)
    shutil.rmtree(moved)
    memory.config = load_config(runs[0] / "config.yaml")
    memory.save_run(moved)
    assert open_runs([moved])[0].fingerprint != own.fingerprint
    assert [run.label for run in open_runs([runs[0], moved])] == ["toy-s0", "moved"]


def test_logs_of_trainings_in_stages(tmp_path: Path) -> None:
    """Steps begin anew in each stage, seconds go on."""
    lines = [
        {"step": 10, "seconds": 1, "stage": 2, "training_stage": 1},
        {"step": 30, "seconds": 2, "stage": 4, "training_stage": 1},
        {"step": 20, "seconds": 3, "stage": 8, "training_stage": 2, "loss": 0.5},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n[]\n{")
    assert training_digest(tmp_path / "log.jsonl") == {
        "steps": 50,
        "seconds": 3,
        "loss": 0.5,
        "curriculum": [
            {"stage": 2, "step": 10},
            {"stage": 4, "step": 30},
            {"stage": 8, "step": 50},
        ],
    }
    assert training_digest(tmp_path / "none.jsonl") is None


# ---- the grid ----------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file, and one of another run, are."""
    begun: list[str] = []
    monkeypatch.setattr(Run, "memory", lambda run, steps: None)
    monkeypatch.setattr(
        grid, "measure", lambda cell, memory: begun.append(cell.name) or fake_result(cell)
    )
    planned = plan([fake_run("a"), fake_run("b", 1)], [2, 4], [1, 2], [0, 1], 4)
    results = fill(planned, tmp_path)
    assert begun == [cell.name for cell in planned]
    assert [(r.pairs, r.steps, r.seed) for r in results] == [
        (c.pairs, c.steps, c.seed) for c in planned
    ]
    path_of(planned[3], tmp_path).write_text('{"fingerprint": 1')
    path_of(planned[4], tmp_path).write_text("{}")
    path_of(planned[5], tmp_path).unlink()
    assert fill(planned, tmp_path) == results
    assert begun[len(planned) :] == [cell.name for cell in planned[3:6]]
    fill(plan([fake_run("c")], [2], [1], [0], 4), tmp_path)
    assert len(begun) == len(planned) + 4


def _work(planned: list[Cell], folder: Path, log: Path, stuck: str) -> None:
    """Fill the grid in a process of its own, noting what is begun; `stuck` is what it never gets done with."""

    def slow(cell: Cell, memory: Memory) -> Measured:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {cell.name}\n")
        time.sleep(60 if cell.name == stuck else 0.01)
        return fake_result(cell)

    grid.measure = slow  # type: ignore[assignment]
    Run.memory = lambda run, steps: None  # type: ignore[assignment, method-assign, return-value]
    fill(planned, folder)
    os._exit(0)


def _begun(log: Path) -> Iterator[tuple[int, str]]:
    for line in log.read_text().splitlines() if log.exists() else ():
        pid, name = line.split()
        yield int(pid), name


def _until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited ten seconds")


def test_processes_share_the_grid_and_take_over_from_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cell is begun once, but for the one that was being measured when its process was killed."""
    planned = plan([fake_run("a")], [2, 4, 8, 16], [1], [0, 1, 2], 4)
    log, stuck = tmp_path / "log", planned[4].name
    fork = multiprocessing.get_context("fork")
    victim = fork.Process(target=_work, args=(planned, tmp_path, log, stuck))
    victim.start()
    _until(lambda: (victim.pid, stuck) in _begun(log))
    other = fork.Process(target=_work, args=(planned, tmp_path, log, ""))
    other.start()
    _until(lambda: len([*_begun(log)]) == len(planned))
    time.sleep(0.1)
    assert other.is_alive()  # waits for what the victim has claimed
    assert load(path_of(planned[4], tmp_path)) is None
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    other.join(10)
    victim.join(10)
    assert (victim.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    counts = Counter(name for _, name in _begun(log))
    assert counts == {cell.name: 1 + (cell.name == stuck) for cell in planned}
    assert (other.pid, stuck) in _begun(log)
    monkeypatch.setattr(grid, "measure", None)
    assert len(fill(planned, tmp_path)) == len(planned)


@pytest.mark.parametrize(
    "wrong", [{"pairs": [0]}, {"pairs": []}, {"steps": [0]}, {"seeds": [-1]}, {"contexts": 1}]
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    asked = {"pairs": None, "steps": None, "seeds": [0], "contexts": 2, **wrong}
    with pytest.raises(InputError, match=next(iter(wrong))):
        plan([fake_run("a")], **asked)
