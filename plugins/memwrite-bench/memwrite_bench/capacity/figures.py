"""The figures of a cell by name, and what they come to over several runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from memwrite.evaluation.key_value import KeyValueEvaluation
from memwrite.evaluation.scores import wilson
from memwrite_bench.capacity.cells import Result
from memwrite_bench.capacity.cost import Cost

#: What is told of each cell. Bits are per context; times are seconds, of one context and of a batch.
FIGURES: Mapping[str, Callable[[KeyValueEvaluation, Cost], float | None]] = {
    "exact_match": lambda recall, cost: recall.memory.exact_match,
    "token_accuracy": lambda recall, cost: recall.memory.token_accuracy,
    "set_recall": lambda recall, cost: recall.memory.set_recall,
    "binding": lambda recall, cost: recall.memory.binding,
    "bits_recalled": lambda recall, cost: recall.bits,
    "bits_gained": lambda recall, cost: recall.bits_gained,
    "bits_per_float": lambda recall, cost: recall.bits_per_float,
    "bits_gained_per_float": lambda recall, cost: _ratio(recall.bits_gained, recall.state_floats),
    "zero_state": lambda recall, cost: recall.zero_state.exact_match,
    "shuffled_state": lambda recall, cost: recall.shuffled_state.exact_match,
    "context_visible": lambda recall, cost: (
        recall.full_context.exact_match if recall.full_context else None
    ),
    "state_floats": lambda recall, cost: recall.state_floats,
    "state_bytes": lambda recall, cost: recall.state_bytes,
    "kv_bytes": lambda recall, cost: cost.kv_bytes,
    "write": lambda recall, cost: cost.single.write,
    "prefill": lambda recall, cost: cost.single.prefill,
    "write_ratio": lambda recall, cost: _ratio(cost.single.write, cost.single.prefill),
    "read": lambda recall, cost: cost.single.read,
    "visible_read": lambda recall, cost: cost.single.visible_read,
    "read_ratio": lambda recall, cost: _ratio(cost.single.read, cost.single.visible_read),
    "batch": lambda recall, cost: cost.batched.batch,
    "batch_write": lambda recall, cost: cost.batched.write,
    "batch_prefill": lambda recall, cost: cost.batched.prefill,
    "batch_write_ratio": lambda recall, cost: _ratio(cost.batched.write, cost.batched.prefill),
    "batch_read": lambda recall, cost: cost.batched.read,
    "batch_visible_read": lambda recall, cost: cost.batched.visible_read,
    "batch_read_ratio": lambda recall, cost: _ratio(cost.batched.read, cost.batched.visible_read),
}

#: Those from 0 to 1.
SHARES = frozenset(
    (
        "exact_match",
        "token_accuracy",
        "set_recall",
        "binding",
        "zero_state",
        "shuffled_state",
        "context_visible",
    )
)

# Two-sided 95% quantiles of Student's t for 1 to 10 degrees of freedom.
_T_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def _ratio(what: float, to: float | None) -> float | None:
    return what / to if to else None


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval.

    Attributes:
        low, high: its ends.
        over: "training seeds" where several runs were measured (Student's t), "contexts" where it is one
            (Wilson's interval, the answers of one context counting as dependent).
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
        interval: None where there is none: a single run has one of its exact match alone.
        runs: each run's figure, the mean over its seeds of contexts.
    """

    mean: float
    least: float
    most: float
    interval: Interval | None
    runs: list[float]


def spread(name: str, runs: Sequence[Sequence[Result]]) -> Spread | None:
    """The figure `name` of `FIGURES` over runs; None if no run has it.

    Args:
        name: of the figure.
        runs: the results of each, all of them measured.
    """
    means = []
    for results in runs:
        values = [FIGURES[name](r.recall, r.cost) for r in results if r.recall and r.cost]
        if told := [value for value in values if value is not None]:
            means.append(mean(told))
    if not means:
        return None
    interval = _over_runs(means, 1.0 if name in SHARES else math.inf)
    if interval is None and name == "exact_match":
        interval = _over_contexts(runs[0])
    return Spread(mean(means), min(means), max(means), interval, means)


def _over_runs(means: Sequence[float], most: float) -> Interval | None:
    ends = t_interval(means)
    return ends and Interval(max(ends[0], 0.0), min(ends[1], most), "training seeds")


def _over_contexts(results: Sequence[Result]) -> Interval:
    scores = [result.recall.memory for result in results if result.recall]
    share = mean(score.exact_match for score in scores)
    return Interval(*wilson(share, sum(score.independent for score in scores)), "contexts")


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% confidence interval of the mean of independent normal values (Student 1908); None for fewer than two.

    Above eleven values the quantile of eleven is kept, which makes it up to 14% too wide.
    """
    if len(values) < 2:
        return None
    quantile = _T_95[min(len(values) - 1, len(_T_95)) - 1]
    half = quantile * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half
