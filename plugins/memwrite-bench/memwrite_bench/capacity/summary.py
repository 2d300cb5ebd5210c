"""Results of many cells as groups: runs that differ in nothing but their seed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memwrite.config import to_dict
from memwrite_bench.capacity.cells import Cell, Result
from memwrite_bench.capacity.figures import FIGURES, Spread, spread
from memwrite_bench.capacity.runs import Run

#: So many training seeds it takes to say that one group does better than another.
ENOUGH = 3


@dataclass(frozen=True)
class Row:
    """A group at one N and one K.

    Attributes:
        pairs: N.
        steps: K; None for a writer that takes none.
        measured: how many of its runs the figures are of; a run with a failed cell is not one of them.
        failures: one sentence for each run that could not be measured.
        diverged: whether one of these wrote states that were not finite.
        figures: by their names in `FIGURES`; None where there is nothing to tell.
    """

    pairs: int
    steps: int | None
    measured: int
    failures: list[str]
    diverged: bool
    figures: dict[str, Spread | None]

    def mean(self, name: str) -> float | None:
        """Of the figure `name` over the runs."""
        figure = self.figures[name]
        return None if figure is None else figure.mean


@dataclass(frozen=True)
class Group:
    """Runs whose configs differ in seed, device and folders alone, their own and those named after the seed.

    Attributes:
        label: what the report calls them.
        runs: their labels.
        seeds: how many different ones they were trained with.
        baseline: whether they keep nothing or everything.
        writer, reader: names.
        pairs: N, that they were trained on.
        steps: every K that they were trained with; empty for a writer that takes no steps.
        rows: by K and N.
    """

    label: str
    runs: list[str]
    seeds: int
    baseline: bool
    writer: str
    reader: str
    pairs: int
    steps: list[int]
    rows: list[Row]

    @property
    def few(self) -> bool:
        """Whether these are too few seeds to say that it is better or worse than another."""
        return self.seeds < ENOUGH

    @property
    def name(self) -> str:
        """The label, marked where seeds are few."""
        seeds = f"{self.seeds} seed" + ("s" if self.seeds > 1 else "")
        return f"{self.label} ({seeds})" if self.few else self.label

    @property
    def columns(self) -> list[int | None]:
        """Every K of its rows."""
        return list(dict.fromkeys(row.steps for row in self.rows))


def summarise(cells: Sequence[Cell], results: Sequence[Result]) -> list[Group]:
    """Groups in the order in which their first runs come.

    Args:
        cells: of the grid.
        results: of each of them.
    """
    found: dict[tuple[str, int, int | None], list[Result]] = {}
    for cell, result in zip(cells, results, strict=True):
        found.setdefault((cell.run.label, cell.pairs, cell.steps), []).append(result)
    groups = _grouped({cell.run.label: cell.run for cell in cells}.values())
    return [_group(label, runs, found) for label, runs in zip(_labels(groups), groups, strict=True)]


def _grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs together that begin from one folder, or each from the one named after its seed."""
    groups: list[list[Run]] = []
    known: dict[str, list[Run]] = {}
    for run in runs:
        keys = [_key(run, named_after_seed) for named_after_seed in (False, True)]
        group = next((known[key] for key in keys if key in known), None)
        if group is None:
            groups.append(group := [])
        group.append(run)
        known |= dict.fromkeys(keys, group)
    return groups


def _key(run: Run, named_after_seed: bool) -> str:
    config = to_dict(run.config)
    del config["seed"], config["training"]["out"], config["backbone"]["device"]
    if named_after_seed:
        for part, name in (("training", "start"), ("backbone", "path")):
            config[part][name] = _without_seed(run, config[part][name] or "")
    return json.dumps(config, sort_keys=True)


def _without_seed(run: Run, name: str) -> str:
    """A folder's name without the run's seed at its end, as in gradient-8-s0 or delta-0/stages/1."""
    return re.sub(rf"[-_.](seed|s)?{run.config.seed}(?=/|$)", "", name)


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The runs' name without their seeds, or the first one's if they have no such name in common."""
    stems = [{_without_seed(run, run.label) for run in runs} for runs in groups]
    taken = Counter(stem for names in stems for stem in names)
    return [
        stem if len(runs) > 1 and len(names) == 1 == taken[stem] else _first(runs)
        for names, runs in zip(stems, groups, strict=True)
        for stem in [min(names)]
    ]


def _first(runs: Sequence[Run]) -> str:
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return runs[0].label + more


def _group(
    label: str, runs: Sequence[Run], found: Mapping[tuple[str, int, int | None], list[Result]]
) -> Group:
    first = runs[0]
    places = [(n, k) for run, n, k in found if run == first.label]
    return Group(
        label=label,
        runs=[run.label for run in runs],
        seeds=len({run.config.seed for run in runs}),
        baseline=first.is_baseline,
        writer=first.config.writer.name,
        reader=first.config.reader.name,
        pairs=first.pairs,
        steps=list(first.steps),
        rows=[_row(n, k, {run.label: found[run.label, n, k] for run in runs}) for n, k in places],
    )


def _row(pairs: int, steps: int | None, results: Mapping[str, Sequence[Result]]) -> Row:
    failed = {
        label: wrong
        for label, of_run in results.items()
        if (wrong := [result for result in of_run if result.outcome != "measured"])
    }
    good = [of_run for label, of_run in results.items() if label not in failed]
    return Row(
        pairs=pairs,
        steps=steps,
        measured=len(good),
        failures=[f"{label}: {w[0].outcome}: {w[0].reason}" for label, w in failed.items()],
        diverged=any(result.outcome == "diverged" for w in failed.values() for result in w),
        figures={name: spread(name, good) for name in FIGURES},
    )
