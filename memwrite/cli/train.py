"""`memwrite train`: any pair, the backbone included, on any task."""

from __future__ import annotations

import os

import click

from memwrite.cli._config import Source, config_options


@click.command()
@config_options
def train(source: Source, overrides: tuple[str, ...]) -> None:
    """Train what CONFIG describes, or the writer and reader of --model.

    OVERRIDES change the config, as in training.out=runs/mine training.steps=2000.

    Resume: the same command, with as many processes, goes on from the last checkpoint (one every training.every
    steps) of a run that was interrupted or killed, and ends with what it would have ended with, to the bit.

    Start: training.start=RUN begins with the weights of a finished run, as far as they fit. training.until=0.95 stops
    once the exact match on held-out examples is that.

    Stages: training.stages is a list of trainings, one after the other, each starting from the one before, with its
    own overrides on top of CONFIG. Here the backbone first learns to answer with its context in sight:

    \b
      training:
        stages:
          - overrides: [writer.name=full-context, reader.name=key-value, training.until=0.9]
          - overrides: [task.params.pairs=4]
          - overrides: [writer.params.steps=2, backbone.trainable=false]

    Stages are kept in RUN/stages, and what was asked for in RUN/recipe.yaml.

    Several processes: torchrun --nproc-per-node 2 -m memwrite train CONFIG, on as many GPUs with backbone.device=cuda.
    training.batch_size is of all processes together; training.accumulate=4 takes it in four parts, to save memory.
    """
    from memwrite.errors import ConfigError
    from memwrite.training.run import train as run

    first = os.environ.get("RANK", "0") == "0"
    try:
        out = run(source, overrides)
    except ConfigError:
        if first:
            raise
        raise SystemExit(2) from None  # every process finds the same, and the first one says so
    if first:
        click.echo(f"Saved to {out}")
