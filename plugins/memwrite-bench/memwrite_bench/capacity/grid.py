"""The grid of cells, which several processes may fill together: each claims a free cell, and done ones are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

from memwrite.errors import InputError, StorageError
from memwrite.memory import Memory
from memwrite.utils.atomic import make_folder, write_bytes
from memwrite.utils.progress import track
from memwrite_bench.capacity.cells import Cell, Result, as_json, load, measure
from memwrite_bench.capacity.runs import Run

CELLS, LOCKS = "cells", "locks"
_AT_ONCE, _FOREVER = 0, -1


def plan(
    runs: Sequence[Run],
    pairs: Sequence[int] | None,
    steps: Sequence[int] | None,
    seeds: Sequence[int],
    contexts: int,
) -> list[Cell]:
    """Every cell there is to measure, without order or repetition in what was asked for.

    Args:
        runs: in the order of the report.
        pairs: every N; None for powers of two up to twice that of each run, and its own.
        steps: every K, for runs whose writer takes steps; None for those that it was trained with.
        seeds: of fresh contexts.
        contexts: for each seed, at least 2.

    Raises:
        InputError: a number is out of range, or there are none.
    """
    for name, numbers, least in (
        ("pairs", pairs, 1),
        ("steps", steps, 1),
        ("seeds", seeds, 0),
        ("contexts", [contexts], 2),
    ):
        if numbers is not None and (not numbers or min(numbers) < least):
            raise InputError(f"{name} must be numbers of at least {least}, got {list(numbers)}")
    return [
        Cell(run, n, k, seed, contexts)
        for run in runs
        for k in _columns(run, steps)
        for n in sorted(set(default_pairs(run.pairs) if pairs is None else pairs))
        for seed in sorted(set(seeds))
    ]


def default_pairs(own: int) -> list[int]:
    """Powers of two from 2 to twice a run's own number, and that itself."""
    powers = [1 << power for power in range(1, (2 * own).bit_length())]
    return sorted({own, *powers})


def _columns(run: Run, steps: Sequence[int] | None) -> list[int | None]:
    if not run.steps:
        return [None]
    return [*sorted(set(run.steps if steps is None else steps))]


def fill(cells: Sequence[Cell], folder: Path) -> list[Result]:
    """Measure what has not been measured, beside any other process that does the same; all results, in order.

    What another process has claimed is left to it; when nothing else is left, it is waited for, and taken over if
    that process ends. A cell that is interrupted is measured again by whoever comes next.

    Args:
        cells: of the grid.
        folder: for the files of results and claims.

    Raises:
        StorageError: the folder cannot be written, or a result vanished from it.
        ConfigError: a run cannot be loaded.
    """
    for part in (CELLS, LOCKS):
        make_folder(folder / part)
        if not os.access(folder / part, os.W_OK):
            raise StorageError(f"the folder '{folder / part}' cannot be written")

    runs = {cell.run.label: cell.run for cell in cells}

    @lru_cache(maxsize=1)
    def memory(label: str, steps: int | None) -> Memory:
        return runs[label].memory(steps)

    pending = [cell for cell in cells if load(path_of(cell, folder)) is None]
    for patience, label in ((_AT_ONCE, "capacity"), (_FOREVER, "others' cells")):
        claimed = []
        for cell in track(pending, label, "cell"):
            path = path_of(cell, folder)
            try:
                with FileLock(folder / LOCKS / cell.name, timeout=patience):
                    if load(path) is None:
                        result = measure(cell, memory(cell.run.label, cell.steps))
                        write_bytes(path, as_json(result))
            except Timeout:
                claimed.append(cell)
        pending = claimed
    return [_loaded(path_of(cell, folder)) for cell in cells]


def _loaded(path: Path) -> Result:
    result = load(path)
    if result is None:
        raise StorageError(f"'{path}' was changed while the grid was measured: run it again")
    return result


def path_of(cell: Cell, folder: Path) -> Path:
    """The file of a cell's result."""
    return folder / CELLS / f"{cell.name}.json"
