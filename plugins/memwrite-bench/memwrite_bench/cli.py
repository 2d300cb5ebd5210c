"""`memwrite bench`: measurements that become reports."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click


def _numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Whole numbers with commas between them."""
    try:
        return None if value is None else tuple(int(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"'{value}' should be whole numbers with commas between them, as in 2,4,8"
        ) from None


@click.group()
def bench() -> None:
    """Measure, and make a report of it."""


@bench.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder for measurements and report.")
@click.option(
    "--pairs",
    callback=_numbers,
    help="N, pairs per context, as in 2,4,8; by default powers of two up to twice that of each run, and its own.",
)
@click.option(
    "--steps",
    callback=_numbers,
    help="K, steps per write, as in 1,2,5; by default those that each run was trained with. Writers without steps "
    "are measured once.",
)
@click.option(
    "--seeds", callback=_numbers, default="0,1,2", show_default=True, help="Of fresh contexts."
)
@click.option(
    "--contexts",
    default=256,
    show_default=True,
    type=click.IntRange(min=2),
    help="Contexts for each seed.",
)
@click.option("--device", help="cpu, cuda, ...; by default where each run was trained.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def capacity(
    runs: tuple[str, ...],
    out: str,
    pairs: tuple[int, ...] | None,
    steps: tuple[int, ...] | None,
    seeds: tuple[int, ...],
    contexts: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure what the run folders RUNS recall over N and K on fresh data, what it costs, and make one report.

    RUNS were trained to remember key-value pairs. Those whose configs differ in nothing but the seed are one group, with
    mean and interval over training seeds; runs of the writers full-context and no-memory are drawn as baselines.

    OUT gets index.html with everything in it, report.json, the plots as PNG files, and one file per measurement in
    cells. The same command goes on with what is unfinished; started several times at once, its processes share
    the work, and each of them ends when all is done. A run that is trained again is measured again.
    """
    from memwrite.utils.progress import show_progress
    from memwrite_bench.capacity import capacity as measure

    given = {"--pairs": pairs, "--steps": steps, "--seeds": seeds}
    words = ["memwrite", "bench", "capacity", *runs, "--out", out, "--contexts", str(contexts)]
    for name, numbers in given.items():
        words += [name, ",".join(map(str, numbers))] if numbers is not None else []
    words += ["--device", device] if device is not None else []
    with show_progress():
        report = measure(
            [Path(run) for run in runs],
            Path(out),
            pairs=pairs,
            steps=steps,
            seeds=seeds,
            contexts=contexts,
            device=device,
            command=shlex.join(words),
        )
    report.save(Path(out))
    if as_json:
        click.echo(json.dumps(report.as_dict()))
        return
    for line in report.lines():
        click.echo(line)
    click.echo(f"\nreport: {Path(out) / 'index.html'}")
