"""A sweep: one config with several values of some of its keys, each trained where it learns, evaluated, and compared.

from memwrite_bench.sweep import sweep
report = sweep("configs/gradmem-kv.yaml", ["seed=0,1,2", "writer.params.steps=1,2"], Path("runs/sweep"))
report.save(Path("runs/sweep"))
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from memwrite.utils.cpu import tuned_cpu
from memwrite_bench.sharing import share
from memwrite_bench.sweep.points import plan
from memwrite_bench.sweep.report import Report, make_report
from memwrite_bench.sweep.work import measure, measured

__all__ = ["Report", "sweep"]


@tuned_cpu()
def sweep(
    source: str | Path,
    words: Sequence[str],
    folder: Path,
    *,
    examples: int | None = None,
    metric: str | None = None,
    command: str = "",
) -> Report:
    """Train and evaluate a config with every combination of values, and return the report, which `Report.save` writes.

    What `folder` holds already is not done again. Any number of processes may be given the same arguments at once: they
    share the work.

    Args:
        source: a YAML file, or a run folder, which is evaluated as it is, with other settings.
        words: overrides, of which some have several values, as in `seed=0,1,2`.
        folder: for runs and measurements.
        examples: to evaluate each on; None for all that the task has.
        metric: the figure to compare by, as a path into an evaluation, as in "memory.word_f1"; by default exact match, or
            value kept where the task has that.
        command: the command line, shown in the report.

    Raises:
        ConfigError: a word or a combination is wrong.
        InputError: no evaluation has such a metric.
        StorageError: `folder` cannot be written.
    """
    points = plan(source, words, folder)
    work = {point.name: partial(measure, point, folder, examples) for point in points}
    share(work, lambda name: measured(name, folder, examples) is not None, folder, "sweep")
    results = [found for name in work if (found := measured(name, folder, examples)) is not None]
    return make_report(points, results, metric, command)
