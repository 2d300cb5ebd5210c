"""What `writer.params.window` saves: a context in blocks beside the whole of it, in one run on one core.

    python benchmarks/windows.py

The model is models/gradmem-kv-64-k5-0 with two steps and contexts longer than it was trained for. A training step queries
every pair; a write is one at inference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from second_order import alone
from timing import in_turn, ratio

from memwrite import Memory
from memwrite.tasks.base import Batch, collate
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.training.loss import training_loss
from memwrite.utils.cpu import tuned_cpu

MODEL = Path(__file__).parents[1] / "models" / "gradmem-kv-64-k5-0"
POSITIONS = "backbone.params.max_position_embeddings=4096"
BATCH = 4


def memory_of(window: int | None) -> Memory:
    """Return the model with more positions, which writes in blocks of `window` tokens, or whole contexts for None."""
    params = {"steps": 2, "most_steps": "null", "window": window or "null"}
    changed = [POSITIONS, *(f"writer.params.{name}={value}" for name, value in params.items())]
    memory = Memory.from_config(MODEL / "config.yaml", changed)
    memory.load_state_dict(Memory.from_config(MODEL).state_dict())
    return memory


def batch_of(memory: Memory, pairs: int) -> Batch:
    """Return contexts of that many pairs, all of them queried."""
    drawn = KeyValueTask(KeyValueConfig(pairs=pairs), memory.backbone.tokenizer).training(BATCH, 0)
    return collate([drawn[index] for index in range(BATCH)])["batch"]


def seconds(pairs: int, window: int | None, rounds: int) -> tuple[list[float], list[float]]:
    """Return the CPU seconds of training steps and of writes; to be called in a fresh process."""
    torch.set_num_threads(1)
    memory = memory_of(window)
    batch = batch_of(memory, pairs)

    def train() -> None:
        memory.train().zero_grad()
        training_loss(memory, batch).loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def write() -> None:
        memory.eval().write(batch.context)

    ways: dict[str, Callable[[], object]] = {"train": train, "write": write}
    with tuned_cpu():
        times = in_turn(ways, rounds)
    return times["train"], times["write"]


@click.command()
@click.option("--pairs", default="32,64,128,256", help="Numbers of pairs, as in 32,64.")
@click.option("--window", default=64, help="Tokens of a block.")
@click.option("--rounds", default=3, help="Rounds to measure.")
def main(pairs: str, window: int, rounds: int) -> None:
    """Print how many times as long whole contexts take."""
    for count in map(int, pairs.split(",")):
        whole, blocks = (alone(seconds, count, way, rounds) for way in (None, window))
        train, write = (ratio(slow, fast) for slow, fast in zip(whole, blocks, strict=True))
        click.echo(f"{count} pairs: a training step {train}, a write {write}")


if __name__ == "__main__":
    main()
