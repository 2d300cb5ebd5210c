"""`memwrite sweep`: every combination of values is trained if it learns, evaluated once, and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from memwrite_bench.sweep import sweep, work
from memwrite_bench.sweep.plots import compared
from memwrite_bench.sweep.points import alternatives, plan
from memwrite_bench.sweep.report import Row, make_report

from memwrite.cli.main import main
from memwrite.errors import ConfigError, InputError, MemwriteError
from memwrite.evaluation.page import svg

BACKBONE: dict[str, Any] = {
    "type": "llama",
    "params": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "tokenizer": "characters",
}
CONFIG: dict[str, Any] = {
    "backbone": {**BACKBONE, "trainable": True},
    "writer": {"name": "forward", "params": {"slots": 2}},
    "reader": {"name": "prefix"},
    "task": {"name": "kv-retrieval", "params": {"pairs": 2, "examples": 4}},
    "training": {"steps": 2, "batch_size": 2, "warmup": 1},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def call(*words: object) -> Result:
    return CliRunner().invoke(main, ["sweep", *map(str, words)])


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("1", ["1"]),
        ("1, 2,3", ["1", "2", "3"]),
        ("[1,2]", ["[1,2]"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("{a: [1,2], b: 3},x", ["{a: [1,2], b: 3}", "x"]),
        ("'a,b',\"c,[\",d", ["'a,b'", '"c,["', "d"]),
        ("", [""]),
        ("1,", ["1", ""]),
    ],
)
def test_commas_part_values_but_not_within_them(value: str, parts: list[str]) -> None:
    assert alternatives(value) == parts


def test_points_are_all_combinations(config: Path, tmp_path: Path) -> None:
    words = ["seed=0,1", "training.steps=3", "writer.params.slots=1,2,4"]
    points = plan(config, words, tmp_path)
    assert [(p.config.seed, p.config.writer.params["slots"]) for p in points] == [
        (seed, slots) for seed in (0, 1) for slots in (1, 2, 4)
    ]
    assert {p.config.training.steps for p in points} == {3}
    assert points[0].values == {"seed": "0", "writer.params.slots": "1"}
    assert points[0].group == points[3].group == (("writer.params.slots", "1"),)
    assert len({p.name for p in points}) == len({p.config.training.out for p in points}) == 6
    assert all(p.name.startswith(f"seed={p.config.seed},slots=") for p in points)
    again = plan(config, ["training.steps=4", *words[::2]], tmp_path)
    assert not {p.name for p in points} & {p.name for p in again}


def test_a_writer_gets_a_reader_of_its_states(config: Path, tmp_path: Path) -> None:
    names = [
        (p.config.writer.name, p.config.reader.name)
        for p in plan(config, ["writer.name=forward,full-context,no-memory"], tmp_path)
    ]
    assert names == [
        ("forward", "prefix"),
        ("full-context", "key-value"),
        ("no-memory", "no-memory"),
    ]
    assert plan(config, ["writer.name=forward,ridge"], tmp_path)[1].name.startswith("writer=ridge-")
    (kept,) = plan(config, ["writer.name=full-context", "reader.name=prefix"], tmp_path)
    assert kept.config.reader.name == "prefix"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["seed"], "not of the form"),
        (["seed=1", "seed=2"], "given twice"),
        (["seed=1,,2"], "empty value"),
        (["seed=1,1"], "comes twice"),
        (["sed=1"], "did you mean 'seed'"),
        (["writer.name=forwrd,gradient"], "did you mean 'forward'"),
        (["task=null"], "no task"),
    ],
)
def test_what_is_no_sweep(config: Path, tmp_path: Path, words: list[str], reason: str) -> None:
    with pytest.raises(MemwriteError, match=reason):
        plan(config, words, tmp_path)


def test_a_sweep_trains_once_and_evaluates_once(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "out", ["seed=0,1", "writer.params.slots=1,2"]
    report = sweep(config, words, out)
    assert [row.values for row in report.rows] == [
        {"writer.params.slots": "1"},
        {"writer.params.slots": "2"},
    ]
    assert [row.seeds for row in report.rows] == [2, 2]
    assert [row.state_bytes for row in report.rows] == [4 * 16, 4 * 32]
    assert all(row.train_seconds is not None and row.write_seconds for row in report.rows)
    assert all(row.unwritten is not None and row.visible is not None for row in report.rows)
    assert report.metric == "memory.exact_match"
    for row in report.rows:
        assert row.mean == sum(row.figures) / 2
        assert row.interval is not None
    assert len(list((out / "runs").iterdir())) == 4
    monkeypatch.setattr(work, "train", None)
    assert len(sweep(config, words, out, examples=2).results) == 4
    monkeypatch.setattr(work, "evaluate_run", None)
    assert sweep(config, words, out, examples=2).metric == report.metric
    with pytest.raises(InputError, match=r"no evaluation has a number 'memory\.exact'"):
        sweep(config, words, out, examples=2, metric="memory.exact")
    loss = sweep(config, words, out, examples=2, metric="surprise")
    assert all(
        row.mean and row.interval is row.unwritten is row.visible is None for row in loss.rows
    )


def test_what_does_not_learn_is_evaluated_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({**CONFIG, "backbone": BACKBONE, "writer": {"name": "no-memory"}})
    )
    report = sweep(path, ["writer.name=no-memory,full-context"], tmp_path / "out")
    assert [row.train_seconds for row in report.rows] == [None, None]
    assert [row.failures for row in report.rows] == [[], []]
    assert not (tmp_path / "out" / "runs").exists()


def test_a_point_that_fails_says_why_and_stops_no_other(config: Path, tmp_path: Path) -> None:
    report = sweep(
        config, ["task.params.key_length=1", "task.params.pairs=2,100"], tmp_path / "out"
    )
    good, bad = report.rows
    assert good.mean is not None
    assert (bad.mean, bad.seeds, len(bad.failures)) == (None, 0, 1)
    assert "100" in bad.failures[0]
    assert report.lines()[-1] == f"pairs 100: {bad.failures[0]}"


def test_a_run_folder_is_evaluated_with_other_settings(config: Path, tmp_path: Path) -> None:
    first = sweep(config, ["seed=0"], tmp_path / "one")
    assert first.rows[0].name == ""
    (run,) = (tmp_path / "one" / "runs").iterdir()
    report = sweep(run, ["task.params.pairs=1,3", "task.params.examples=4"], tmp_path / "two")
    assert [row.values["task.params.pairs"] for row in report.rows] == ["1", "3"]
    assert not (tmp_path / "two" / "runs").exists()


def test_the_command_with_two_processes(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(config, "writer.params.slots=1,2", "--out", out, "--processes", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"report: {out / 'index.html'}"
    assert any(line.startswith("slots 2 ") for line in result.stdout.splitlines())
    data = json.loads((out / "report.json").read_text())
    assert [row["failures"] for row in data["rows"]] == [[], []]
    page = (out / "index.html").read_text()
    assert "memory.exact_match" in page
    assert "memwrite sweep" in page
    assert (out / "sweep.svg").read_text() in page


def test_a_wrong_sweep_is_a_sentence(config: Path, tmp_path: Path) -> None:
    for words in ([config, "sed=1"], [tmp_path / "none.yaml", "seed=1"]):
        result = call(*words, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1


def row(mean: float | None, interval: tuple[float, float] | None = None, **values: str) -> Row:
    return Row(values, 1, mean, interval, [], None, None, None, None, None, [])


def test_a_number_lies_along_the_axis_and_a_name_is_a_line() -> None:
    drawn = svg(
        compared(
            [
                row(0.1, (0, 0.3), slots="1", writer="a"),
                row(0.2, slots="2", writer="a"),
                row(None, slots="4", writer="a"),
                row(0.3, slots="1", writer="bee"),
            ],
            "memory.exact_match",
        )
    )
    assert all(f">{text}<" in drawn for text in ("slots", "1", "2", "writer a", "writer bee"))
    assert ">4<" not in drawn
    names = svg(compared([row(0.1, writer="a"), row(0.2, (0, 1), writer="bee")], "m"))
    assert all(f">{text}<" in names for text in ("writer a", "writer bee", "m"))
    assert svg(compared([], "m")).startswith("<svg")


def test_an_interval_needs_three_seeds_and_is_never_narrower_than_over_contexts(
    config: Path, tmp_path: Path
) -> None:
    points = plan(config, ["seed=0,1,2"], tmp_path)

    def made(count: int, *exact: float) -> Any:
        results = [
            work.Result(p.name, None, {"memory": {"exact_match": e, "interval": [0.4, 0.6]}}, "", None, "here")
            for p, e in zip(points[:count], exact, strict=True)
        ]  # fmt: skip
        return make_report(points[:count], results, None, "").rows[0].interval

    assert made(2, 0.1, 0.9) == (0.4, 0.6)
    assert made(3, 0.5, 0.5, 0.5) == (0.4, 0.6)
    low, high = made(3, 0.1, 0.5, 0.9)
    assert low < 0 < 1 < high
    with pytest.raises(ConfigError):
        plan(config, ["seed=-1"], tmp_path)
