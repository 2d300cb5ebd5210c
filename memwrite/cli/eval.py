"""`memwrite eval`: what a trained run remembers, beside its controls."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("eval")
@click.argument("run")
@click.option("--seed", type=int, help="Other contexts; by default those held out in training.")
@click.option("--examples", type=int, help="Contexts; by default as many as the task says.")
@click.option("--pairs", type=int, help="Pairs per context; by default as many as the task says.")
@click.option("--device", help="cpu, cuda, ...; by default where it was trained.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    run: str,
    seed: int | None,
    examples: int | None,
    pairs: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure what the run folder RUN recalls, beside zeros, another's state and the context itself.

    RUN must have been trained on key-value retrieval (task kv-retrieval).
    """
    from memwrite.evaluation.kv import evaluate_run
    from memwrite.progress import show_progress

    with show_progress():
        results = evaluate_run(Path(run), seed, examples, pairs, device)
    if as_json:
        click.echo(json.dumps({"run": run, "seed": seed, **results.as_dict()}))
        return
    for line in results.lines():
        click.echo(line)
