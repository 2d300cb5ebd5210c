"""`memwrite train`: any pair, the backbone included, on any task."""

from __future__ import annotations

import click


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
def train(config: str, overrides: tuple[str, ...]) -> None:
    """Train what CONFIG describes; the same command goes on with an unfinished run.

    OVERRIDES change the config, as in training.out=runs/mine training.steps=2000.
    """
    from memwrite.training.run import train as run

    click.echo(f"Saved to {run(config, overrides)}")
