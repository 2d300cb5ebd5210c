"""The capacity report: what runs recall over N and K, what it costs, and how sure that is.

from memwrite_bench.capacity import capacity
report = capacity([Path("models/gradmem-kv-k1-0")], Path("runs/capacity"), pairs=[4, 8])
report.save(Path("runs/capacity"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memwrite.utils.cpu import tuned_cpu
from memwrite_bench.capacity.grid import fill, plan
from memwrite_bench.capacity.report import Report, make_report
from memwrite_bench.capacity.runs import open_runs

__all__ = ["SEEDS", "Report", "capacity"]

SEEDS = (0, 1, 2)


@tuned_cpu()
def capacity(
    runs: Sequence[Path],
    folder: Path,
    *,
    pairs: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    seeds: Sequence[int] = SEEDS,
    contexts: int = 256,
    device: str | None = None,
    command: str = "",
) -> Report:
    """Measure `runs` at every N and K on fresh contexts, and return the report, which `Report.save` writes.

    What `folder` holds already is not measured again. Any number of processes may be given the same arguments at
    once: they share the work.

    Args:
        runs: folders of runs trained to remember key-value pairs.
        folder: for one file per measurement.
        pairs: every N; None for powers of two up to twice each run's own, and its own.
        steps: every K; None for those that each run was trained with. Of no account to writers without steps.
        seeds: of the fresh contexts.
        contexts: for each seed, at least 2.
        device: to measure on; None for where each run was trained.
        command: told in the report.

    Raises:
        ConfigError: a folder holds no such run, or it cannot be built.
        InputError: a number is out of range, or a run was given twice.
        StorageError: a run's weights do not fit, or `folder` cannot be written.
    """
    opened = open_runs(runs, device)
    cells = plan(opened, pairs, steps, seeds, contexts)
    return make_report(opened, cells, fill(cells, folder), command)
