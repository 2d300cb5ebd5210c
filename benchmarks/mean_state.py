"""Make the run folder of an untrained gradient writer whose slots are where a model is used to reading them: at the mean of
the states that another writer, with which the model was trained, writes of a task's contexts.

    python benchmarks/mean_state.py configs/babi/smollm2-gradient.yaml training.start=runs/babi-smollm2-forward \
      --out runs/babi-smollm2-mean

The config is that of the gradient writer's training, and `training.start` is the run of the other writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click
import torch
from memwrite_gradient.writer import GradientWriter
from torch import Tensor

from memwrite import Memory
from memwrite.backbones.adapters import read
from memwrite.checkpoints.run_folder import save_run
from memwrite.config import Config, load_config, part_config
from memwrite.plugins.registry import registry
from memwrite.tasks.base import collate
from memwrite.training.start import adapter_of, begin


@torch.no_grad()
def states(config: Config, count: int) -> Tensor:
    """Return the prefixes (N, M, D) that the memory of `training.start` writes of as many contexts that training draws."""
    memory = Memory.from_config(str(config.training.start)).eval()
    if config.task is None:
        raise click.UsageError("the config has no task whose contexts could be written")
    plugin = registry().task(config.task.name)
    params: Any = part_config(plugin.config, config.task.params, "task.params")
    examples = plugin.build(params, memory.backbone.tokenizer).training(count, config.seed)
    size = config.training.batch_size
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    contexts = [collate([examples[i] for i in part])["batch"].context for part in parts]
    if memory.writer.spec.kind != "prefix":
        raise click.UsageError(f"'{config.training.start}' writes no prefixes: name another start")
    return torch.cat([memory.write(context).state["memory"] for context in contexts])


@click.command(help=__doc__)
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1)
@click.option("--contexts", type=click.IntRange(min=1), default=128, help="To take the mean of.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to be made.")
def main(config: str, overrides: Sequence[str], contexts: int, out: Path) -> None:
    wanted = load_config(config, list(overrides))
    wanted = replace(wanted, training=replace(wanted.training, stages=[]))
    if wanted.writer.name != "gradient" or wanted.training.start is None:
        raise click.UsageError("the config is to be of a gradient writer, with a training.start")
    written = states(wanted, contexts)
    memory, mean = begin(wanted), written.mean(0)
    slots = cast(GradientWriter, memory.writer).fast.slots
    if slots.shape != mean.shape:
        raise click.UsageError(
            f"'{wanted.training.start}' writes {len(mean)} vectors, and the gradient writer has {len(slots)}: set "
            f"writer.params.slots={len(mean)}"
        )
    with torch.no_grad():
        slots.copy_(mean)
    folder = adapter_of(wanted)
    adapter = None if folder is None else read(folder)
    if adapter is not None:
        adapter.apply(memory.model)
    save_run(memory.components, out, adapter)
    far = (written - mean).flatten(1).norm(dim=1).mean()
    click.echo(f"{out}: slots of length {mean.norm():.2f}, from which states are {far:.2f} away")


if __name__ == "__main__":
    main()
