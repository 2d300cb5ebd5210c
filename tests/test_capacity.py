"""The capacity report: cells and their files, a grid that processes share, aggregation, and the page."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from memwrite import Memory
from memwrite.cli.main import main
from memwrite.config import Config, load_config, to_dict
from memwrite.errors import InputError
from memwrite.evaluation import kv
from memwrite.evaluation.capacity import capacity, cells, cost, grid
from memwrite.evaluation.capacity.cells import Cell, load, measure
from memwrite.evaluation.capacity.cells import Result as Measured
from memwrite.evaluation.capacity.cost import Cost, Seconds
from memwrite.evaluation.capacity.figures import FIGURES, SHARES, spread, t_interval
from memwrite.evaluation.capacity.grid import default_pairs, fill, path_of, plan
from memwrite.evaluation.capacity.plots import apart
from memwrite.evaluation.capacity.report import Report, make_report
from memwrite.evaluation.capacity.runs import Run, open_runs, training_digest
from memwrite.evaluation.capacity.summary import Group, summarise
from memwrite.evaluation.scores import Scores, wilson
from memwrite.tasks.kv import KvConfig, KvTask

CONFIG: dict[str, Any] = {
    "backbone": {
        "type": "llama",
        "params": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
        "tokenizer": "characters",
    },
    "writer": {"name": "gradient", "params": {"slots": 2, "steps": 1, "most_steps": 2}},
    "reader": {"name": "prefix"},
    "task": {"name": "kv-retrieval", "params": {"pairs": 2, "curriculum": [1]}},
}
PLAIN: Config = load_config(CONFIG)
NO_MEMORY = {"writer": {"name": "no-memory"}, "reader": {"name": "no-memory"}}
FULL = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}


def save(folder: Path, seed: int = 0, **parts: Any) -> Path:
    """The run folder of a model that never trained."""
    Memory.from_config({**CONFIG, **parts, "seed": seed}).save_run(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of a gradient writer, and both baselines."""
    root = tmp_path_factory.mktemp("runs")
    (first, second) = (save(root / f"toy-s{seed}", seed) for seed in (0, 1))
    (first / "README.md").write_text("tuned <twice> & failed")
    log = [
        {"step": 50, "seconds": 2.5, "loss": 1.5, "stage": 1},
        {"step": 90, "seconds": 5, "stage": 2},
    ]
    (first / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + '\n{"step": 1')
    return [first, second, save(root / "none", **NO_MEMORY), save(root / "full", **FULL)]


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


# ---- cells -------------------------------------------------------------------------------------


def test_a_cell_is_what_the_evaluation_says_and_what_the_tensors_weigh(runs: list[Path]) -> None:
    [run] = open_runs(runs[:1])
    memory = run.memory(1)
    found = measure(Cell(run, 3, 1, seed=5, contexts=4), memory)
    fresh = KvTask(KvConfig(pairs=3), memory.backbone.codec).fresh(4, 5)
    assert found.outcome == "measured"
    assert found.recall == kv.evaluate(memory, fresh)
    assert (found.recall.state_floats, found.recall.state_bytes) == (32, 128)
    assert found.cost is not None
    length = len(fresh[0].context)
    assert found.cost.kv_bytes == 2 * length * 16 * 4 + length + 8
    assert (found.cost.single.batch, found.cost.batched.batch) == (1, 4)
    for seconds in (found.cost.single, found.cost.batched):
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
    found = measure(Cell(run, pairs, 1, 0, 2), run.memory(1))
    assert (found.outcome, found.recall, found.cost) == ("too long", None, None)
    assert reason in found.reason


def test_a_context_that_fits_without_its_queries_is_measured(runs: list[Path]) -> None:
    """But the full context is not, which needs the positions behind it."""
    [gradient, full] = open_runs([runs[0], runs[3]])
    found = measure(Cell(gradient, 8, 1, 0, 2), gradient.memory(1))
    assert found.recall is not None
    assert found.recall.full_context is None
    assert found.cost is not None
    assert (found.cost.kv_bytes, found.cost.single.prefill) == (None, None)
    assert measure(Cell(full, 8, None, 0, 2), full.memory(None)).outcome == "too long"


def test_divergence_is_a_result(tmp_path: Path) -> None:
    params = {"slots": 2, "steps": 3, "lr": 1e38, "init_std": 1e-4}
    writer = {"name": "gradient", "params": params}
    [run] = open_runs([save(tmp_path / "wild", writer=writer)])
    found = measure(Cell(run, 2, 3, 0, 4), run.memory(3))
    assert (found.outcome, found.recall, found.cost) == ("diverged", None, None)
    assert "diverged at step 1" in found.reason
    assert Measured.from_dict(json.loads(cells.as_json(found))) == found


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


# ---- aggregation -------------------------------------------------------------------------------


def fake_run(label: str, seed: int = 0, pairs: int = 2, **training: Any) -> Run:
    out = replace(PLAIN.training, out=f"runs/{label}", **training)
    config = replace(PLAIN, seed=seed, training=out)
    return Run(label, Path(label), config, f"{label:0<32}", pairs, (1,), "cpu")


def fake_result(cell: Cell, exact: float = 0.5, outcome: Any = "measured") -> Measured:
    """As if `exact` of 100 independent answers had been right."""
    scores = Scores(exact, wilson(exact, 100), 100, exact, exact, exact)
    none = replace(scores, exact_match=0.0, binding=None)
    recall = kv.Evaluation(cell.contexts, cell.pairs, 2, 32, 128, 5.0, scores, none, none, None)
    spent = Cost(Seconds(1, 0.25, 0.5, None, None), Seconds(4, 0.5, 1.0, 0.25, 2.0), 999)
    told = (recall, spent) if outcome == "measured" else (None, None)
    place = (cell.run.fingerprint, cell.pairs, cell.steps, cell.seed, cell.contexts)
    return Measured(*place, outcome, "" if outcome == "measured" else "so it is", *told, "here")


def group_of(exact: Sequence[Sequence[float]]) -> Group:
    """The group of as many runs, each with its exact match at some seeds of contexts."""
    seeds = range(len(exact[0]))
    planned = plan([fake_run(f"toy-s{n}", n) for n in range(len(exact))], [2], [1], seeds, 4)
    values = [value for of_run in exact for value in of_run]
    [group] = summarise(planned, [*map(fake_result, planned, values)])
    return group


@given(
    st.integers(1, 3).flatmap(
        lambda seeds: st.lists(
            st.lists(st.floats(0, 1), min_size=seeds, max_size=seeds), min_size=1, max_size=5
        )
    )
)
def test_a_group_is_the_mean_of_its_runs(exact: list[list[float]]) -> None:
    """Whatever their order, between worst and best; its interval says what it is over."""
    group = group_of(exact)
    figure = group.rows[0].figures["exact_match"]
    assert figure is not None
    assert figure.interval is not None
    means = [sum(of_run) / len(of_run) for of_run in exact]
    assert figure.runs == pytest.approx(means)
    assert figure.mean == pytest.approx(sum(means) / len(means))
    assert 0 <= figure.interval.low <= figure.mean + 1e-9
    assert figure.mean - 1e-9 <= figure.interval.high <= 1
    assert figure.least - 1e-9 <= figure.mean <= figure.most + 1e-9
    assert figure.interval.over == ("training seeds" if len(exact) > 1 else "contexts")
    assert group.few == (len(exact) < 3)
    turned = group_of([of_run[::-1] for of_run in exact[::-1]]).rows[0].figures["exact_match"]
    assert turned is not None
    assert turned.mean == pytest.approx(figure.mean)
    assert (turned.least, turned.most) == pytest.approx((figure.least, figure.most))


def test_contexts_of_more_seeds_are_more_contexts() -> None:
    """A single run's interval is Wilson's of all its answers together."""
    figure = group_of([[0.2, 0.4]]).rows[0].figures["exact_match"]
    assert figure is not None
    assert figure.interval is not None
    assert (figure.interval.low, figure.interval.high) == pytest.approx(wilson(0.3, 200))


@pytest.mark.parametrize("degrees", range(1, 11))
def test_quantiles_are_those_of_students_density(degrees: int) -> None:
    """The interval of values -1, 1, 0, 0, … holds 95% of the density, by Simpson's rule."""
    values = [-1.0, 1.0, *[0.0] * (degrees - 1)]
    ends = t_interval(values)
    assert ends is not None
    error = math.sqrt(2 / degrees / (degrees + 1))
    quantile = torch.linspace(0, ends[1] / error, 4001, dtype=torch.float64)
    scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    density = scale * (1 + quantile**2 / degrees) ** (-(degrees + 1) / 2)
    weights = torch.tensor([1.0, *[4.0, 2.0] * 1999, 4.0, 1.0], dtype=torch.float64)
    inside = 2 * float((density * weights).sum()) * float(quantile[1]) / 3
    assert inside == pytest.approx(0.95, abs=1e-5)
    assert ends[0] == -ends[1]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.floats(-5, 5), st.floats(0.1, 3))
def test_intervals_move_with_their_values(values: list[float], shift: float, scale: float) -> None:
    ends, moved = t_interval(values), t_interval([scale * v + shift for v in values])
    assert ends is not None
    assert moved == pytest.approx([scale * end + shift for end in ends], abs=1e-6)
    assert t_interval(values[:1]) is None


def test_a_run_with_a_failed_cell_is_counted_and_named() -> None:
    """One context seed that diverges is enough: its writer cannot be relied on."""
    planned = plan([fake_run(f"toy-s{n}", n) for n in range(3)], [2, 4], [1], [0, 1], 4)
    outcome = {("toy-s1", 2, 1): "diverged", ("toy-s2", 4, 0): "too long"}
    results = [
        fake_result(cell, 0.5, outcome.get((cell.run.label, cell.pairs, cell.seed), "measured"))
        for cell in planned
    ]
    [group] = summarise(planned, results)
    [two, four] = group.rows
    assert (two.measured, two.diverged, two.failures) == (2, True, ["toy-s1: diverged: so it is"])
    assert (four.measured, four.diverged, four.failures) == (
        2,
        False,
        ["toy-s2: too long: so it is"],
    )
    assert two.figures["exact_match"] is not None
    assert len(two.figures["exact_match"].runs) == 2


def test_groups_are_runs_that_differ_in_seed_and_folders_alone() -> None:
    """Warm starts from runs of the own seed are the same; another step size, or N, is another group."""
    runs = [
        *(fake_run(f"warm-s{n}", n, start=f"runs/eight-{n}/stages/1") for n in (0, 1, 2)),
        *(fake_run(f"cold-{n}", n) for n in (0, 1)),
        fake_run("odd", 1, learning_rate=0.5),
        fake_run("left", 0, start="runs/sixteen"),
        fake_run("right", 1, start="runs/sixteen"),
        fake_run("warm", 0, start="runs/four"),
    ]
    planned = plan(runs, [2], [1], [0], 4)
    groups = summarise(planned, [*map(fake_result, planned)])
    names = [group.name for group in groups]
    assert names[:2] == ["warm-s0 and 2 more", "cold (2 seeds)"]
    assert names[2:] == ["odd (1 seed)", "left and 1 more (2 seeds)", "warm (1 seed)"]
    assert [group.seeds for group in groups] == [3, 2, 1, 2, 1]


def test_every_figure_is_told_of_a_cell() -> None:
    [cell] = plan([fake_run("toy")], [2], [1], [0], 4)
    told = {name: spread(name, [[fake_result(cell, 0.25)]]) for name in FIGURES}
    means = {name: figure.mean for name, figure in told.items() if figure}
    assert means["bits_gained_per_float"] == pytest.approx(2 * (2 * math.log2(62) - 5) / 32)
    assert (means["write"], means["batch_write_ratio"], means["batch_read_ratio"]) == (0.25, 2, 0.5)
    assert told["write_ratio"] is told["context_visible"] is None
    assert all(0 <= means[name] <= 1 for name in SHARES & means.keys())


@given(st.integers(1, 5000))
def test_default_pairs(own: int) -> None:
    found = default_pairs(own)
    assert own in found
    assert found == sorted(set(found))
    assert all(n == own or (n & (n - 1) == 0 and 2 <= n <= 2 * own) for n in found)
    assert max(found) > own or own == max(found) == 1 or max(found) * 2 > 2 * own


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.3))
def test_labels_stand_apart(heights: list[float], gap: float) -> None:
    """In order, not below the axis; where nothing is too near, nothing moves, else no more than it takes."""
    moved = apart(heights, gap)
    ranked = sorted(range(len(heights)), key=heights.__getitem__)
    for below, above in pairwise(ranked):
        assert moved[above] - moved[below] >= gap - 1e-9
    assert all(height >= 0 for height in moved)
    assert all(abs(a - b) <= gap * len(heights) for a, b in zip(moved, heights, strict=True))
    if moved and min(moved) > 0:
        assert sum(moved) == pytest.approx(sum(heights), abs=1e-6)
    assert apart(moved, gap * 0.99) == pytest.approx(moved, abs=1e-6)


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


# ---- the report --------------------------------------------------------------------------------


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
    assert len(page.addresses) == 8
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "script" not in page.tags
    assert "http" not in text
    assert "url(" not in text
    assert sorted(path.name for path in out.glob("*.png")) == sorted(
        f"{name}.png"
        for name in (
            "exact-match", "exact-match-steps", "bits-per-float", "bits-gained", "binding", "time",
            "bytes", "controls",
        )
    )  # fmt: skip
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


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
    found = []
    for word in text.replace(",", "").replace("(", " ").replace(")", " ").split():
        digits = word.rstrip("%×")
        try:
            value = float(digits)
        except ValueError:
            continue
        behind = len(digits.partition(".")[2]) if "e" not in digits else 0
        off = max(0.5 * 10**-behind if "." in digits else 0.5, 0.006 * abs(value))
        percent = 100 if word.endswith("%") else 1
        found.append((value / percent, off / percent * 1.001))
    return found


def any_result(cell: Cell) -> Measured:
    """Figures all different from each other, or a failure."""
    chance = random.Random(cell.name)

    def scores() -> Scores:
        drawn = [chance.random() for _ in range(4)]
        return Scores(drawn[0], wilson(drawn[0], 100), 100, *drawn[1:])

    def seconds(batch: int) -> Seconds:
        return Seconds(batch, *(chance.lognormvariate(-3, 2) for _ in range(4)))

    outcome = chance.choices(["measured", "too long", "diverged"], [8, 1, 1])[0]
    sizes = (cell.contexts, cell.pairs, 2, chance.randrange(9**6), chance.randrange(9**6))
    recall = kv.Evaluation(*sizes, 9 * chance.random(), *(scores() for _ in range(4)))
    spent = Cost(seconds(1), seconds(chance.randrange(2, 99)), chance.randrange(9**8))
    found = fake_result(cell, 0, outcome)
    return replace(found, recall=recall, cost=spent) if found.recall else found


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
        1: "exact_match interval token_accuracy set_recall binding bits_recalled bits_gained bits_per_float "
        "bits_gained_per_float",
        2: "write prefill write_ratio read visible_read read_ratio batch batch_write batch_prefill "
        "batch_write_ratio batch_read batch_visible_read batch_read_ratio",
        3: "state_floats state_bytes kv_bytes",
        4: "exact_match zero_state shuffled_state context_visible",
    }
    rows = [(group, row) for group in groups for row in group["rows"]]
    assert {len(row["failures"]) for _, row in rows} >= {0, 1}
    for table, names in shown.items():
        assert len(page.tables[table]) == 1 + len(rows)
        for (group, row), told in zip(rows, page.tables[table][1:], strict=True):
            assert told[0].startswith(group["label"])
            assert told[1:3] == [str(row["pairs"]), str(row["steps"])]
            for name, text in zip(names.split(), told[3:], strict=True):
                check(row, name, text, 1000 if table == 2 else 1)


def check(row: Any, name: str, text: str, per_second: int) -> None:
    """A cell of a table says what the row of the JSON says of `name`, and no more."""
    figure = row["figures"]["exact_match" if name == "interval" else name]
    if figure is None:
        assert text == ("diverged" if row["diverged"] else "too long")
        return
    wanted = [figure["interval"][end] for end in ("low", "high")] if name == "interval" else [
        figure["mean"], *([len(row["failures"])] * bool(row["failures"])),
        *([figure["least"], figure["most"]] * (row["measured"] > 1)),
    ]  # fmt: skip
    if name.endswith(("write", "read", "prefill")):
        wanted = [number * per_second for number in wanted]
        if row["failures"]:
            wanted[1] /= per_second
    told = numbers(text)
    assert len(told) == len(wanted), (name, text, figure)
    for (value, off), number in zip(told, wanted, strict=True):
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
        assert line[1:6] == ["gradient", "2", "N=2, K=1 to 2", str(steps), "32"]
        wanted = [exact["mean"], exact["least"], exact["most"]]
        wanted += [exact["interval"]["low"], exact["interval"]["high"]]
        told = [value for cell in line[6:9] for value, _ in numbers(cell)]
        assert told == pytest.approx(wanted, abs=0.00051)
        assert line[9] == exact["interval"]["over"] == "training seeds"
    assert lines[2][9] == "contexts"


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
