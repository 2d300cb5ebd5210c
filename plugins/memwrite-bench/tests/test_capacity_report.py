"""The capacity report: the page, its tables and the command."""

from __future__ import annotations

import json
import re
import tomllib
from html.parser import HTMLParser
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from capacity_runs import (
    CONFIG,
    any_result,
    call,
    fake_run,
    toy_runs,
)
from click.testing import Result
from memwrite_bench.capacity import capacity, cells, cost, grid
from memwrite_bench.capacity.cells import Result as Measured
from memwrite_bench.capacity.grid import plan
from memwrite_bench.capacity.report import Report, make_report

from memwrite.config import to_dict


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return toy_runs(tmp_path_factory.mktemp("runs"))


#: Names in SVG, which nobody asks for over the network.
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


class Page(HTMLParser):
    """Every table of a page as rows of cells, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self._cell: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._cell = ""

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append(self._cell)
            self._cell = None


@pytest.fixture(scope="module")
def made(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A report by the command, with a context that is too long."""
    out = tmp_path_factory.mktemp("capacity") / "out"
    words = ["bench", "capacity", *runs, "--pairs", "2,9", "--seeds", "0,1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "REPEATS", 1)
        return out, call(*words, "--contexts", 3, "--out", out)


def test_the_page_needs_nothing_else(made: tuple[Path, Result]) -> None:
    out, result = made
    assert result.exit_code == 0, result.output
    assert str(out / "index.html") in result.output
    text = (out / "index.html").read_text()
    page = Page(text)
    assert not page.addresses
    assert not {"script", "img", "link"} & page.tags
    assert not set(re.findall(r"https?://[^\s\"<]*", text)) - NAMESPACES
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", text))
    assert {path.name for path in out.glob("*.svg")} == {
        f"{name}.svg"
        for name in (
            "exact-match", "exact-match-steps", "bits-per-float", "bits-gained", "binding", "write-time",
            "read-time", "bytes", "controls",
        )
    }  # fmt: skip
    assert all(path.read_text() in text for path in out.glob("*.svg"))
    assert max(len(row) for table in page.tables for row in table) == 7


def test_the_page_tells_of_the_runs(made: tuple[Path, Result]) -> None:
    text = (made[0] / "index.html").read_text()
    assert "tuned &lt;twice&gt; &amp; failed" in text
    assert "steps 90; seconds 5; loss 1.5." in text
    assert "Curriculum: 1 from step 50, 2 from step 90" in text
    assert "toy-s1: too long: 66 positions are needed, and the model has 64" in text
    assert "hidden_size" in text
    assert "memwrite bench capacity" in text
    assert "toy (2 seeds)" in text
    assert f"torch {torch.__version__}" in text


def numbers(text: str) -> list[tuple[float, float]]:
    """The numbers in a cell, each with how far it may be off by rounding."""
    values = []
    for digits, unit in re.findall(r"([\d.]+(?:e[-+]\d+)?) ?(%|ms)?", text.replace(",", "")):
        value = float(digits)
        behind = len(digits.partition(".")[2]) if "e" not in digits else 0
        off = max(0.5 * 10**-behind if "." in digits else 0.5, 0.006 * abs(value))
        part = {"%": 100, "ms": 1000}.get(unit, 1)
        values.append((value / part, off / part * 1.001))
    return values


def test_every_number_in_the_tables_is_one_of_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means, ranges and intervals, to the digits shown; and where there is none, why."""
    monkeypatch.setattr(Report, "_figures", lambda report: {})
    planned = plan(
        [fake_run(f"a-{n}", n) for n in range(3)] + [fake_run("b", learning_rate=1.0)],
        [2, 4, 8], [1, 2], [0, 1], 4,
    )  # fmt: skip
    make_report([], planned, [*map(any_result, planned)], "").save(tmp_path)
    page = Page((tmp_path / "index.html").read_text())
    groups = json.loads((tmp_path / "report.json").read_text())["groups"]
    shown = {
        1: "exact_match interval set_recall binding",
        2: "bits_recalled bits_gained bits_per_float bits_gained_per_float",
        3: "write write_ratio read read_ratio",
        4: "batch batch_write batch_write_ratio batch_read_ratio",
        5: "state_floats state_bytes kv_bytes",
        6: "exact_match zero_state shuffled_state context_visible",
    }
    rows = [(group, row) for group in groups for row in group["rows"]]
    assert {len(row["failures"]) for _, row in rows} >= {0, 1}
    for table, names in shown.items():
        assert len(page.tables[table]) == 1 + len(rows)
        for (group, row), line in zip(rows, page.tables[table][1:], strict=True):
            assert line[0].startswith(group["label"])
            assert line[1:3] == [str(row["pairs"]), str(row["steps"])]
            for name, text in zip(names.split(), line[3:], strict=True):
                check(row, name, text)


def check(row: Any, name: str, text: str) -> None:
    """A cell of a table says what the row of the JSON says of `name`, and no more."""
    figure = row["figures"]["exact_match" if name == "interval" else name]
    if figure is None:
        assert text == ("diverged" if row["diverged"] else "too long")
        return
    expected = [figure["interval"][end] for end in ("low", "high")] if name == "interval" else [
        figure["mean"], *([len(row["failures"])] * bool(row["failures"])),
        *([figure["least"], figure["most"]] * (row["measured"] > 1)),
    ]  # fmt: skip
    values = numbers(text)
    assert len(values) == len(expected), (name, text, figure)
    for (value, off), number in zip(values, expected, strict=True):
        assert abs(value - number) <= off, (name, text, figure)


def test_the_summary_is_of_the_own_number_of_pairs(made: tuple[Path, Result]) -> None:
    page = Page((made[0] / "index.html").read_text())
    report = json.loads((made[0] / "report.json").read_text())
    toy = report["groups"][0]
    [_, *lines] = page.tables[0]
    assert [line[0] for line in lines] == ["toy (2 seeds)"] * 2 + ["none (1 seed)", "full (1 seed)"]
    for line, steps in zip(lines, (1, 2), strict=False):
        [row] = [r for r in toy["rows"] if (r["pairs"], r["steps"]) == (2, steps)]
        exact = row["figures"]["exact_match"]
        assert line[1] == f"2, {steps}"
        assert line[5] == "128"
        expected = [exact["mean"], exact["least"], exact["most"]]
        expected = expected[: len(numbers(line[2]))]
        expected += [exact["interval"]["low"], exact["interval"]["high"]]
        values = [value for cell in line[2:4] for value, _ in numbers(cell)]
        assert values == pytest.approx(expected, abs=0.00051)
        assert line[4] == exact["interval"]["over"] == "contexts"
    assert lines[2][4] == "contexts"


def test_the_json_holds_every_cell(made: tuple[Path, Result]) -> None:
    """As in its file; groups say no more than the cells do."""
    report = json.loads((made[0] / "report.json").read_text())
    files = {path.name: json.loads(path.read_bytes()) for path in made[0].glob("cells/*.json")}
    assert len(files) == len(report["cells"]) == 2 * 2 * (2 * 2 + 1 + 1)
    assert all(cell in files.values() for cell in report["cells"])
    results = [Measured.from_dict(cell) for cell in report["cells"]]
    assert [json.loads(cells.as_json(result)) for result in results] == report["cells"]
    toy = report["groups"][0]
    for row in toy["rows"]:
        here = [r for r in results if (r.pairs, r.steps) == (row["pairs"], row["steps"])]
        gained = [r.recall.bits_gained for r in here if r.recall]
        figure = row["figures"]["bits_gained"]
        assert (figure is None) == (not gained)
        if figure is not None:
            assert figure["mean"] == pytest.approx(sum(gained) / len(gained))


def test_the_same_command_again_measures_nothing(
    made: tuple[Path, Result], runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "measure", None)
    report = capacity(runs[:2], made[0], pairs=[9, 2], seeds=[1, 0], contexts=3)
    [toy] = report.groups
    assert to_dict(toy) == json.loads((made[0] / "report.json").read_text())["groups"][0]


def test_a_report_without_anything_measured(runs: list[Path], tmp_path: Path) -> None:
    """Its plots are empty, its tables say why."""
    words = ["bench", "capacity", runs[2], "--pairs", 4000, "--seeds", 0, "--contexts", 2]
    result = call(*words, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report == json.loads((tmp_path / "report.json").read_text())
    [row] = report["groups"][0]["rows"]
    assert (row["measured"], row["figures"]["exact_match"]) == (0, None)
    assert "3844 keys" in (tmp_path / "index.html").read_text()
    assert "Every run was measured at one K." in (tmp_path / "index.html").read_text()


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    for part in parts:
        assert part in result.stderr


def test_runs_that_cannot_be_measured(runs: list[Path], tmp_path: Path) -> None:
    words = ["--out", tmp_path / "out"]
    refused(call("bench", "capacity", tmp_path / "no", *words), "no run folder", "memwrite train")
    for task, part in ((None, "no task"), ({"name": "text", "params": {"files": ["x"]}}, "'text'")):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "task": task}))
        refused(call("bench", "capacity", tmp_path, *words), part)
    refused(call("bench", "capacity", runs[0], runs[0], *words), "count twice")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--pairs", "2,x"), "whole numbers with commas"),
        (("--pairs", "0"), "at least 1"),
        (("--contexts", "1"), "--contexts"),
        (("--device", "nowhere"), "nowhere"),
    ],
)
def test_wrong_options(runs: list[Path], tmp_path: Path, words: tuple[str, str], part: str) -> None:
    refused(call("bench", "capacity", runs[0], "--out", tmp_path / "out", *words), part)


def test_help_is_enough() -> None:
    text = call("bench", "capacity", "--help").output
    for word in ("--pairs", "--steps", "--seeds", "--contexts", "--device", "--json", "cells"):
        assert word in text


def test_the_command_is_declared_as_an_entry_point() -> None:
    """`memwrite bench` is available once this distribution is installed."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["memwrite.commands"]
    loaded = {n: EntryPoint(n, where, "memwrite.commands").load() for n, where in points.items()}
    assert {name: command.name for name, command in loaded.items()} == {
        "bench": "bench",
        "sweep": "sweep",
    }
    assert list(loaded["bench"].commands) == ["capacity", "language", "questions"]
