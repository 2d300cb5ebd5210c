"""Timing of runs that take turns, and the ratio of two of them with its spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """How many times as long one run takes as another: the median over rounds, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g}x ({self.low:.3g} to {self.high:.3g})"


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Return the ratio of the times of two runs, from `in_turn`."""
    rounds = sorted(a / b for a, b in zip(slow, fast, strict=True))
    quarter = len(rounds) // 4
    return Ratio(statistics.median(rounds), rounds[quarter], rounds[-1 - quarter])


def in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Return the seconds of each run in every round, after one round that does not count.

    By default they are CPU seconds of this process, which other work on the machine disturbs less.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return seconds
