"""The figures of a cell by name, and what they come to over several runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from memwrite.evaluation.scores import wilson
from memwrite_bench.capacity.cells import Result

_TIMES = ("write", "prefill", "write_ratio", "read", "visible_read", "read_ratio")

#: The figures of each cell, and where a `Result` holds them. Bits are per context; times are seconds, of one context
#: and of a batch.
FIGURES: Mapping[str, str] = {
    "exact_match": "recall.memory.exact_match",
    "token_accuracy": "recall.memory.token_accuracy",
    "set_recall": "recall.memory.set_recall",
    "binding": "recall.memory.binding",
    "bits_recalled": "recall.bits",
    "bits_gained": "recall.bits_gained",
    "bits_per_float": "recall.bits_per_float",
    "bits_gained_per_float": "recall.bits_gained_per_float",
    "zero_state": "recall.zero_state.exact_match",
    "shuffled_state": "recall.shuffled_state.exact_match",
    "context_visible": "recall.full_context.exact_match",
    "state_floats": "recall.state_floats",
    "state_bytes": "recall.state_bytes",
    "kv_bytes": "cost.kv_bytes",
    **{name: f"cost.single.{name}" for name in _TIMES},
    "batch": "cost.batched.batch",
    **{f"batch_{name}": f"cost.batched.{name}" for name in _TIMES},
}

#: Figures from 0 to 1.
SHARES = frozenset(
    [
        "exact_match",
        "token_accuracy",
        "set_recall",
        "binding",
        "zero_state",
        "shuffled_state",
        "context_visible",
    ]
)

#: An interval over training seeds needs at least so many runs, and so does a claim that one group is better.
FEWEST_RUNS = 3

# Two-sided 95% quantiles of Student's t for 1 to 10 degrees of freedom.
_T_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval.

    Attributes:
        low, high: its ends.
        over: "training seeds" where `FEWEST_RUNS` or more were measured (Student's t), "contexts" where there are
            fewer (Wilson's interval of all answers, those of one context counting as dependent).
    """

    low: float
    high: float
    over: Literal["training seeds", "contexts"]


@dataclass(frozen=True)
class Spread:
    """One figure over runs.

    Attributes:
        mean: of the runs' figures.
        least, most: of them.
        interval: None where there is none: fewer than `FEWEST_RUNS` runs have one of their exact match alone, and
            figures that are the same in all runs have none. That of exact match is never narrower than the one over
            contexts, because runs may agree by chance.
        runs: each run's figure, the mean over its seeds of contexts.
    """

    mean: float
    least: float
    most: float
    interval: Interval | None
    runs: list[float]


def spread(name: str, runs: Sequence[Sequence[Result]]) -> Spread | None:
    """Summarise the figure `name` of `FIGURES` over runs; None if no run has it.

    Args:
        name: of the figure.
        runs: the results of each, all of them measured.
    """
    means = []
    for results in runs:
        values = [_figure(name, result) for result in results]
        if measured := [value for value in values if value is not None]:
            means.append(mean(measured))
    if not means:
        return None
    interval = _over_runs(means, 1.0 if name in SHARES else math.inf)
    if name == "exact_match":
        interval = _at_least(_over_contexts(runs), interval)
    return Spread(mean(means), min(means), max(means), interval, means)


def _figure(name: str, result: Result) -> float | None:
    """Return a figure of a result; None where there is none, as for a context that is too long."""
    value: Any = result
    for attribute in FIGURES[name].split("."):
        value = None if value is None else getattr(value, attribute)
    return None if value is None else float(value)


def _over_runs(means: Sequence[float], most: float) -> Interval | None:
    """Return the interval over training seeds; None for too few runs, or where all have the same figure."""
    ends = t_interval(means)
    if ends is None or len(means) < FEWEST_RUNS or ends[0] == ends[1]:
        return None
    return Interval(max(ends[0], 0.0), min(ends[1], most), "training seeds")


def _over_contexts(runs: Sequence[Sequence[Result]]) -> Interval:
    scores = [result.recall.memory for results in runs for result in results if result.recall]
    share = mean(score.exact_match for score in scores)
    return Interval(*wilson(share, sum(score.independent for score in scores)), "contexts")


def _at_least(contexts: Interval, seeds: Interval | None) -> Interval:
    """Return the interval over training seeds, no narrower than that over contexts."""
    if seeds is None:
        return contexts
    return Interval(min(seeds.low, contexts.low), max(seeds.high, contexts.high), seeds.over)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% confidence interval of the mean of independent normal values (Student 1908); None for fewer than two.

    Above eleven values the quantile of eleven is kept, which makes it up to 14% too wide.
    """
    if len(values) < 2:
        return None
    quantile = _T_95[min(len(values) - 1, len(_T_95)) - 1]
    half = quantile * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half
