"""`memwrite sweep`: one config with several values, trained, evaluated and compared."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click

from memwrite_bench.finish import finish


@click.command("sweep")
@click.argument("source", metavar="CONFIG")
@click.argument("words", nargs=-1, metavar="[OVERRIDES]...")
@click.option("--out", required=True, help="Folder for runs, measurements and report.")
@click.option("--examples", type=click.IntRange(min=2), help="To evaluate each on; by default all.")
@click.option(
    "--metric",
    help="What to compare by, as `memwrite eval --json` names it: memory.word_f1, memory.bits, ...",
)
@click.option(
    "--processes", default=1, show_default=True, type=click.IntRange(min=1), help="At once."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def sweep(
    source: str,
    words: tuple[str, ...],
    out: str,
    examples: int | None,
    metric: str | None,
    processes: int,
    as_json: bool,
) -> None:
    """Train and evaluate CONFIG with every combination of values, and compare them in one table and plot.

    OVERRIDES are those of `memwrite train`, with commas between values: seed=0,1,2 training.learning_rate=0.001,0.004. Commas
    within brackets belong to a value. A writer gets the first reader that reads its states, unless reader.name is given.

    What has nothing to learn is evaluated as it is, and so is a run folder in place of CONFIG, for instance with
    writer.params.steps=1,2,5. Combinations that differ in the seed alone are one row, with its mean and interval.

    OUT gets index.html, report.json, the plot, and every run in runs. The same command goes on with what is unfinished.
    """
    from memwrite.utils.progress import show_progress
    from memwrite_bench.sweep import sweep as run

    command = [source, *words, "--out", out]
    command += [] if examples is None else ["--examples", str(examples)]
    command += [] if metric is None else ["--metric", metric]
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "memwrite", "sweep", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(processes - 1)
    ]
    try:
        with show_progress():
            report = run(
                source,
                words,
                Path(out),
                examples=examples,
                metric=metric,
                command=shlex.join(["memwrite", "sweep", *command]),
            )
    finally:
        for other in others:
            other.terminate()
            other.wait()
    finish(report, Path(out), as_json)
