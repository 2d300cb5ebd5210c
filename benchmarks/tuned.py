"""What `tuned_cpu` saves in a training step of a trained gradient writer, on one core.

    python benchmarks/tuned.py

The model is models/gradmem-kv-32-k1to5-0, queried for every pair of 24 contexts. Each way runs in a process of its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click
import torch
from second_order import alone
from timing import in_turn, ratio

from memwrite import Memory
from memwrite.tasks.base import collate
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.training.loss import training_loss
from memwrite.utils.cpu import tuned_cpu

MODEL = Path(__file__).parents[1] / "models" / "gradmem-kv-32-k1to5-0"
BATCH = 24


def training_step(pairs: int, tuned: bool, rounds: int) -> list[float]:
    """Return the CPU seconds of each step; to be called in a fresh process."""
    torch.set_num_threads(1)
    one = ["writer.params.steps=1", "writer.params.most_steps=null"]
    memory = Memory.from_config(MODEL, one).train()
    drawn = KeyValueTask(KeyValueConfig(pairs=pairs), memory.backbone.tokenizer).training(BATCH, 0)
    batch = collate([drawn[index] for index in range(BATCH)])["batch"]

    def step() -> None:
        memory.zero_grad()
        training_loss(memory, batch).loss.backward()  # type: ignore[no-untyped-call]

    with tuned_cpu() if tuned else nullcontext():
        return in_turn({"step": step}, rounds)["step"]


@click.command()
@click.option("--pairs", default="16,32", help="Numbers of pairs, as in 16,32.")
@click.option("--rounds", default=5, help="Steps to measure.")
def main(pairs: str, rounds: int) -> None:
    """Print how many times as long a step takes without `tuned_cpu`."""
    for count in map(int, pairs.split(",")):
        without, tuned = (alone(training_step, count, way, rounds) for way in (False, True))
        click.echo(f"{count} pairs: {ratio(without, tuned)}")


if __name__ == "__main__":
    main()
