"""`memwrite eval`: what a memory recalls on a task, beside its controls."""

from __future__ import annotations

import json
from pathlib import Path

import click

from memwrite.cli._options import check_config


@click.command("eval")
@click.argument("run")
@click.argument("overrides", nargs=-1)
@click.option(
    "--seed",
    type=int,
    help="Seed of fresh contexts; by default those held out in training are used.",
)
@click.option(
    "--examples", type=int, help="Number of contexts; by default as many as the task holds out."
)
@click.option("--device", help="cpu, cuda, ...; by default where it was trained.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    run: str,
    overrides: tuple[str, ...],
    seed: int | None,
    examples: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure what the memory RUN recalls, beside zeros, another's state and the context itself.

    RUN is a run folder, or the config of a memory that needs no training. It is measured on what its task holds out,
    or as OVERRIDES say: with task.params.files=[qa1_test.txt] on all of that file.
    """
    from memwrite.evaluation.run import evaluate_run
    from memwrite.utils.progress import show_progress

    check_config(run)
    changes = [*overrides, *([] if device is None else [f"backbone.device={device}"])]
    with show_progress():
        report = evaluate_run(Path(run), changes, seed, examples)
    if as_json:
        click.echo(json.dumps({"run": run, "seed": seed, **report.as_dict()}))
        return
    for line in report.result.lines():
        click.echo(line)
