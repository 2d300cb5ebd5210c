"""The capacity report: what the figures of several runs come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from capacity_runs import (
    fake_result,
    fake_run,
)
from hypothesis import given
from hypothesis import strategies as st
from memwrite_bench.capacity.figures import FIGURES, SHARES, spread, t_interval
from memwrite_bench.capacity.grid import default_pairs, plan
from memwrite_bench.capacity.summary import Group, summarise
from memwrite_bench.lines import spread_apart

from memwrite.evaluation.scores import wilson


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
    assert figure.interval.over == (
        "training seeds" if len(set(means)) > 1 and len(means) > 2 else "contexts"
    )
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


@pytest.mark.parametrize("exact", [[[0.99]], [[0.99], [0.99]], [[0.99]] * 3, [[1.0]] * 5])
def test_runs_that_agree_are_no_surer_than_their_contexts(exact: list[list[float]]) -> None:
    """No interval has no width: three runs of one exact match may agree by chance."""
    (row,) = group_of(exact).rows
    figure = row.figures["exact_match"]
    assert figure is not None
    assert figure.interval is not None
    low, high = wilson(exact[0][0], 100 * len(exact))
    assert figure.interval.low <= low + 1e-12
    assert figure.interval.high >= high - 1e-12
    assert figure.interval.low < figure.interval.high
    others = [f.interval for name, f in row.figures.items() if f and name != "exact_match"]
    assert others == [None] * len(others)


@pytest.mark.parametrize("runs", [1, 2, 3, 4])
def test_an_interval_over_training_seeds_needs_three_of_them(runs: int) -> None:
    figures = group_of([[0.4 + run / 10] for run in range(runs)]).rows[0].figures
    exact, tokens = figures["exact_match"], figures["token_accuracy"]
    assert exact is not None
    assert tokens is not None
    assert exact.interval is not None
    assert exact.interval.over == ("contexts" if runs < 3 else "training seeds")
    assert (tokens.interval is None) == (runs < 3)


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
    assert (two.measured, two.diverged, two.failures) == (2, True, ["toy-s1: diverged: a reason"])
    assert (four.measured, four.diverged, four.failures) == (
        2,
        False,
        ["toy-s2: too long: a reason"],
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


def test_runs_from_one_folder_are_a_group_whatever_seed_its_name_ends_in() -> None:
    planned = plan(
        [fake_run(f"from-{n}", n, start="runs/first-0") for n in range(3)], [2], [1], [0], 4
    )
    [group] = summarise(planned, [*map(fake_result, planned)])
    assert group.name == "from"


def test_every_figure_has_a_place_in_a_result() -> None:
    [cell] = plan([fake_run("toy")], [2], [1], [0], 4)
    spreads = {name: spread(name, [[fake_result(cell, 0.25)]]) for name in FIGURES}
    means = {name: figure.mean for name, figure in spreads.items() if figure}
    assert means["bits_gained_per_float"] == pytest.approx(2 * (2 * math.log2(62) - 5) / 32)
    assert (means["write"], means["batch_write_ratio"], means["batch_read_ratio"]) == (0.25, 2, 0.5)
    assert spreads["write_ratio"] is spreads["context_visible"] is None
    assert all(0 <= means[name] <= 1 for name in SHARES & means.keys())


@given(st.integers(1, 5000))
def test_default_pairs(own: int) -> None:
    pairs = default_pairs(own)
    assert own in pairs
    assert pairs == sorted(set(pairs))
    assert all(n == own or (n & (n - 1) == 0 and 2 <= n <= 2 * own) for n in pairs)
    assert max(pairs) > own or own == max(pairs) == 1 or max(pairs) * 2 > 2 * own


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.3))
def test_labels_stand_spread_apart(heights: list[float], gap: float) -> None:
    """In order, not below the axis; where nothing is too near, nothing moves, else no more than it takes."""
    moved = spread_apart(heights, gap)
    ranked = sorted(range(len(heights)), key=heights.__getitem__)
    for below, above in pairwise(ranked):
        assert moved[above] - moved[below] >= gap - 1e-9
    assert all(height >= 0 for height in moved)
    assert all(abs(a - b) <= gap * len(heights) for a, b in zip(moved, heights, strict=True))
    if moved and min(moved) > 0:
        assert sum(moved) == pytest.approx(sum(heights), abs=1e-6)
    assert spread_apart(moved, gap * 0.99) == pytest.approx(moved, abs=1e-6)
