"""`memwrite eval`: what a trained run remembers, beside its controls."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("eval")
@click.argument("run")
@click.argument("overrides", nargs=-1)
@click.option("--seed", type=int, help="Other contexts; by default those held out in training.")
@click.option("--examples", type=int, help="Contexts; by default as many as the task says.")
@click.option("--pairs", type=int, help="Short for task.params.pairs=N.")
@click.option("--device", help="cpu, cuda, ...; by default where it was trained.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    run: str,
    overrides: tuple[str, ...],
    seed: int | None,
    examples: int | None,
    pairs: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure what the run folder RUN recalls, beside zeros, another's state and the context itself.

    It is measured on what its task holds out, or as OVERRIDES say: with task.params.files=[qa1_test.txt] on all of
    that file.
    """
    from memwrite.evaluation.run import evaluate_run
    from memwrite.utils.progress import show_progress

    changes = list(overrides)
    for key, value in (("task.params.pairs", pairs), ("backbone.device", device)):
        if value is not None:
            changes.append(f"{key}={value}")
    with show_progress():
        report = evaluate_run(Path(run), changes, seed, examples)
    if as_json:
        click.echo(json.dumps({"run": run, "seed": seed, **report.as_dict()}))
        return
    for line in report.result.lines():
        click.echo(line)
