"""The trainings of what memories learn can all be started, and what they have learned is put into a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from families import FAMILIES
from samples import PROSE

from memwrite.config import load_config, part_config
from memwrite.plugins import registry
from memwrite.training.run import train

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import learning  # noqa: E402
import value_curve  # noqa: E402
from recipes import BUDGETS, RECIPES, Budget  # noqa: E402

#: Of a run that shows only that everything starts.
SMALL = ("training.steps=1", "training.every=1", "training.batch_size=2", "training.start=null")


def test_every_training_has_a_config_that_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = list(learning.trainings(Path("runs"), tuple(RECIPES), (), 1))
    assert len(found) == sum(map(len, RECIPES.values()))
    for training in found:
        file, *overrides = training.arguments
        config = load_config(file, overrides)
        assert config.writer.name == training.memory or training.memory in config.writer.name
        for part, plugin in (
            (config.writer, registry().writer(config.writer.name)),
            (config.reader, registry().reader(config.reader.name)),
        ):
            part_config(plugin.config, part.params, plugin.role)


def test_one_budget_for_all_on_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    budgets = set()
    for training in learning.trainings(Path("runs"), ("text",), (), 1):
        file, *overrides = training.arguments
        config = load_config(file, overrides)
        assert config.task is not None
        sizes = config.task.params["context"], config.task.params["length"]
        budgets.add((config.training.steps, config.training.batch_size, *sizes))
    assert len(budgets) == 1


def small(folder: Path, task: str, memory: str) -> tuple[str, ...]:
    """Return a recipe that is over at once, around a tiny model."""
    sizes = json.dumps({**FAMILIES["llama"], "max_position_embeddings": 128})
    kept = [word for word in RECIPES[task][memory] if not word.startswith("backbone.")]
    if task == "kv":
        model = f"backbone={{path: null, type: llama, tokenizer: characters, params: {sizes}}}"
        return *kept, model, *SMALL, "task.params.examples=2"
    text = (
        f"task.params.folder={folder}",
        "task.params.files=[text.txt]",
        "task.params.context=8",
        "task.params.length=4",
    )
    model = f"backbone={{path: null, type: llama, attention: eager, params: {sizes}}}"
    return *kept, model, *SMALL, *text


def test_trainings_end_in_rows_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has loaded everything already; what is done is not trained again."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MEMWRITE_DATA", str(tmp_path))
    (tmp_path / "text.txt").write_text(PROSE)
    for task in ("kv", "text"):
        monkeypatch.setitem(RECIPES[task], "gist", small(tmp_path, task, "gist"))
    monkeypatch.setattr(learning, "ENDS", ())
    started = []

    def run(argv: list[str], *, check: bool) -> None:
        assert argv[:4] == [sys.executable, "-m", "memwrite", "train"]
        assert check
        started.append(argv)
        train(argv[4], argv[5:])

    monkeypatch.setattr(learning.subprocess, "run", run)
    given = [str(tmp_path / "runs"), "--seeds", "1", "--task", "kv", "--task", "text"]
    given += ["--memory", "gist"]
    for command in ("train", "train"):
        done = CliRunner().invoke(learning.main, [command, *given], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert len(started) == 2
    done = CliRunner().invoke(
        learning.main, ["table", *given, "--pairs", "2"], catch_exceptions=False
    )
    heads = [line for line in done.output.splitlines() if line.startswith("| task")]
    rows = [line for line in done.output.splitlines() if line.startswith(("| kv", "| text"))]
    assert ["exact match" in head for head in heads] == [True, False]
    cells = [row.split(" | ") for row in rows]
    assert [own[1:3] for own in cells] == [["`gist`", "0"]] * 2
    assert cells[0][4] == "2"
    drawn = tmp_path / "curve.svg"
    run = tmp_path / "runs" / "text-gist-0"
    done = CliRunner().invoke(
        value_curve.main, [str(run), "--out", str(drawn)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert done.output.startswith("no memory: ")
    assert done.output.count("| text-gist-0 |") == 2
    assert drawn.read_text().startswith("<svg")


def test_learning_rates_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each of them; what was trained before is not trained again."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(RECIPES["kv"], "gist", small(tmp_path, "kv", "gist"))
    monkeypatch.setitem(BUDGETS, "kv", Budget(1, 0.1, {}, (0.1, 0.2), 1, half=1))
    monkeypatch.setattr(learning, "ENDS", ())
    trained = []

    def fit(config: str, overrides: list[str]) -> None:
        trained.append(overrides[-1])
        train(config, overrides)

    monkeypatch.setattr(learning, "fit", fit)
    given = ["rates", str(tmp_path / "runs"), "--seeds", "1", "--task", "kv", "--memory", "gist"]
    outputs = [CliRunner().invoke(learning.main, given, catch_exceptions=False) for _ in range(2)]
    rows = [[line for line in o.output.splitlines() if line.startswith("| kv")] for o in outputs]
    assert rows[0] == rows[1]
    assert [row.split(" | ")[3] for row in rows[0]] == ["0.1", "0.2"]
    assert len(trained) == 2
