"""`memwrite eval`: what a memory recalls on a task, beside its controls."""

from __future__ import annotations

import json
from pathlib import Path

import click

from memwrite.cli._config import Source, config_options


@click.command("eval")
@config_options
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
    source: Source,
    overrides: tuple[str, ...],
    seed: int | None,
    examples: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure what the memory CONFIG recalls, beside zeros, another's state and the context itself.

    CONFIG is a run folder, or the config of a memory that needs no training. It is measured on what its task holds out,
    or as OVERRIDES say: with task.params.files=[qa1_test.txt] on all of that file.
    """
    from memwrite.evaluation.run import evaluate_run

    changes = [*overrides, *([] if device is None else [f"backbone.device={device}"])]
    report = evaluate_run(
        Path(source) if isinstance(source, str) else source, changes, seed, examples
    )
    if as_json:
        click.echo(json.dumps({"run": source, "seed": seed, **report.as_dict()}))
        return
    for line in report.result.lines():
        click.echo(line)
