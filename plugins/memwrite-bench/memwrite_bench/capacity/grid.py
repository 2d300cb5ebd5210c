"""The grid of cells, which several processes may fill together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

from memwrite.errors import InputError, StorageError
from memwrite.memory import Memory
from memwrite.utils.atomic import write_bytes
from memwrite_bench.capacity.cells import Cell, Result, as_json, load, measure
from memwrite_bench.capacity.runs import Run
from memwrite_bench.sharing import CELLS, share


def plan(
    runs: Sequence[Run],
    pairs: Sequence[int] | None,
    steps: Sequence[int] | None,
    seeds: Sequence[int],
    contexts: int,
) -> list[Cell]:
    """List every cell to measure, sorted and without repetition.

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
    """Return powers of two from 2 to twice a run's own number, and that itself."""
    powers = [1 << power for power in range(1, (2 * own).bit_length())]
    return sorted({own, *powers})


def _columns(run: Run, steps: Sequence[int] | None) -> list[int | None]:
    if not run.steps:
        return [None]
    return [*sorted(set(run.steps if steps is None else steps))]


def fill(cells: Sequence[Cell], folder: Path) -> list[Result]:
    """Measure what has not been measured, beside any other process that does the same; all results, in order.

    Args:
        cells: all cells of the grid.
        folder: for the files of results and claims.

    Raises:
        StorageError: the folder cannot be written, or a result vanished from it.
        ConfigError: a run cannot be loaded.
    """
    runs = {cell.run.label: cell.run for cell in cells}

    @lru_cache(maxsize=1)
    def memory(label: str, steps: int | None) -> Memory:
        return runs[label].memory(steps)

    def fill_in(cell: Cell) -> None:
        result = measure(cell, memory(cell.run.label, cell.steps))
        write_bytes(path_of(cell, folder), as_json(result))

    of_name = {cell.name: cell for cell in cells}
    share(
        {name: partial(fill_in, cell) for name, cell in of_name.items()},
        lambda name: load(path_of(of_name[name], folder)) is not None,
        folder,
        "capacity",
    )
    return [_loaded(path_of(cell, folder)) for cell in cells]


def _loaded(path: Path) -> Result:
    result = load(path)
    if result is None:
        raise StorageError(f"'{path}' was changed while the grid was measured: run it again")
    return result


def path_of(cell: Cell, folder: Path) -> Path:
    """Return the file of a cell's result."""
    return folder / CELLS / f"{cell.name}.json"
