"""The tables that want a GPU start on a CPU: every command of each, with a tiny model and small sizes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from families import FAMILIES
from samples import BABI, PROSE, SQUAD

from memwrite import Memory
from memwrite.cli.main import main as memwrite
from memwrite.config import load_config

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu import TABLES, Choice, Job, main, run  # noqa: E402
from mean_state import main as mean_state  # noqa: E402


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> Choice:
    """Files under the names of the configs', and a tiny model with positions enough for them."""
    folder = tmp_path_factory.mktemp("gpu")
    for name in ("xquad", "squad", "wikitext-2"):
        (folder / name).mkdir()
    titled = [
        {**SQUAD["data"][0], "title": title} for title in ("Normans", "Oxygen", "Warsaw", "X")
    ]
    for file in ("xquad/xquad.en.part.json", "squad/dev-v2.0-part.json"):
        (folder / file).write_text(json.dumps({"data": titled}))
    (folder / "wikitext-2" / "valid.txt").write_text(PROSE * 3)
    for file in load_config(ROOT / "configs" / "babi" / "smollm2.yaml").task.params["files"]:  # type: ignore[union-attr]
        (folder / file).write_text(BABI)
    sizes = {**FAMILIES["llama"], "max_position_embeddings": 512}
    built = Memory.from_config({"backbone": {"type": "llama", "params": sizes}})
    built.backbone.save(folder / "model", torch.float32)
    return Choice(folder, folder / "out", "cpu", str(folder / "model"), [0], small=True)


def started(job: Job) -> None:
    """Run a command in this process, which has loaded everything already."""
    command, words = memwrite, list(job.argv[3:])
    if job.argv[1] == "benchmarks/mean_state.py":
        command, words = mean_state, list(job.argv[2:])
    else:
        assert list(job.argv[:3]) == [sys.executable, "-m", "memwrite"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, (shlex.join(job.argv), done.output, done.exception)
    if job.prints:
        job.done.write_text(done.output)
    assert job.done.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("table", ["value-kept", "learning", "key-value"])
def test_every_command_of_a_table_starts(
    table: str, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMWRITE_DATA", str(choice.data))
    monkeypatch.chdir(ROOT)
    choice.out.mkdir(exist_ok=True)
    for job in TABLES[table](choice):
        started(job)
    if table == "learning":
        kept = json.loads((choice.out / "distillation-forward-0.json").read_text())
        assert "memory" in kept["readings"]


@pytest.mark.parametrize("table", ["scan", "latency"])
def test_benchmarks_start(table: str, choice: Choice) -> None:
    """In a process of their own, as the script runs them; what is done is not run again."""
    (job,) = TABLES[table](choice)
    run(job, choice.data)
    rows = json.loads(job.done.read_text())["rows"]
    assert rows
    job.done.write_text("kept")
    run(job, choice.data)
    assert job.done.read_text() == "kept"


def test_a_command_that_fails_ends_the_table(choice: Choice) -> None:
    job = Job([sys.executable, "-c", "raise SystemExit(3)"], choice.out / "never", prints=True)
    with pytest.raises(SystemExit, match="3"):
        run(job, choice.data)
    assert not job.done.exists()


def test_commands_can_be_looked_at_first(choice: Choice) -> None:
    words = ["--data", str(choice.data), "--seeds", "0,1", "--dry-run"]
    for table in TABLES:
        done = CliRunner().invoke(main, [table, *words])
        assert done.exit_code == 0, done.output
        assert "cuda" in done.output or table == "checks"
    done = CliRunner().invoke(main, ["learning", *words])
    assert done.output.count("memwrite train") == 2 * (1 + 8 + 6)
