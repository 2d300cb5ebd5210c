"""What a training step of the gradient writer costs, beside the official GradMem, on one core in one run.

    MEMWRITE_OFFICIAL_GRADMEM=FOLDER python benchmarks/second_order.py

FOLDER is a checkout of github.com/yurakuratov/gradmem; without it only memwrite's own ways are compared. The setting is the
paper's: Llama with 4 layers of width 128, 8 slots, 16 pairs with two-character keys and values, batches of 64, one query a
context. Every way runs in a process of its own, from the same weights, which are random, or with --run those of a trained run.
Only ratios within a run mean something elsewhere.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import click
import torch
from memwrite_gradient.writer import GradientWriter
from official import CHECKOUT, official_model, outputs
from timing import in_turn, ratio
from torch.nn import functional as F

from memwrite import Memory
from memwrite.tasks.base import Batch, Example, collate
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.training.loss import training_loss
from memwrite.utils.cpu import tuned_cpu

PAIRS, BATCH, SLOTS = 16, 64, 8
MODEL = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "memwrite": ({}, 1),
    "memwrite, in eighths": ({}, 8),
    "memwrite, compiled": ({"compile": True}, 1),
    "memwrite, recomputed": ({"recompute": True}, 1),
}
"""Parameters of the writer, and `training.accumulate`: parts of a batch, one after the other."""


@dataclass(frozen=True)
class Cost:
    """The cost of one training step: CPU seconds in every round, peak memory above that of the model, and the loss."""

    rounds: list[float]
    bytes: int
    loss: float

    @property
    def seconds(self) -> float:
        """The median over rounds."""
        return median(self.rounds)


def memory_of(steps: int, run: str | None = None, **params: Any) -> Memory:
    """Return the paper's writer with K = `steps`, from seed 0, or with the model, slots and head of a run of its kind."""
    trained = None if run is None else Memory.from_config(run)
    writer = {"slots": SLOTS, "steps": steps, "lr": 0.04, "write_head": True}
    backbone = {
        "type": "llama",
        "params": MODEL,
        "tokenizer": "characters",
        "attention": "eager",
        "trainable": True,
    }
    memory = Memory.from_config(
        {
            "backbone": backbone if trained is None else asdict(trained.config.backbone),
            "writer": {
                "name": "gradient",
                "params": {**writer, "reconstruction_weight": 0.5, **params},
            },
            "reader": {"name": "prefix"},
        }
    )
    if trained is not None:
        memory.load_state_dict(trained.state_dict(), strict=False)  # all but learnt step sizes
    return memory


def batch_of(memory: Memory) -> Batch:
    """Return a batch of contexts with one query each."""
    drawn = KeyValueTask(KeyValueConfig(pairs=PAIRS), memory.backbone.tokenizer).training(BATCH, 0)
    examples = [drawn[index] for index in range(BATCH)]
    return collate([Example(e.context, e.queries[:1], e.labels[:1]) for e in examples])["batch"]


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """Return `count` batches of equal size that make up `batch`."""
    rows = [slice(start, start + BATCH // count) for start in range(0, BATCH, BATCH // count)]
    return [Batch(batch.context.rows(r), batch.queries.rows(r), batch.labels[r]) for r in rows]


def training_step(way: str, steps: int, rounds: int, run: str | None = None) -> Cost:
    """Measure one way; to be called in a fresh process."""
    torch.set_num_threads(1)
    params, parts = WAYS.get(way, ({}, 1))
    memory = memory_of(steps, run, **params).train()
    batches = parts_of(batch_of(memory), parts)
    loss: Callable[[Batch], Any] = lambda batch: training_loss(memory, batch).loss  # noqa: E731
    model: Any = memory
    if way == "official":
        model = official_model(memory)
        loss = lambda batch: outputs(model, batch)["loss"]  # noqa: E731

    def step() -> float:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            value = loss(batch) / parts
            value.backward()
            total += float(value.detach())
        return total

    if way != "official":
        step = tuned_cpu()(step)  # as `memwrite train` does
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss_value = step()  # also the first call, which is not timed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Cost(in_turn({way: step}, rounds)[way], peak * 1024, loss_value)


def inference(steps: int, rounds: int, run: str | None = None) -> dict[str, list[float]]:
    """Return the CPU seconds of a "write", and of K passes of the "bare" model forward and back to its inputs."""
    torch.set_num_threads(1)
    memory = memory_of(steps, run).eval().requires_grad_(False)
    writer = memory.writer
    assert isinstance(writer, GradientWriter)
    assert writer.head is not None
    head, fast = writer.head, writer.fast
    context = batch_of(memory).context
    rows = len(context.ids)

    def bare() -> None:
        slots = fast.slots.expand(rows, -1, -1)
        for _ in range(steps):
            leaf = slots.detach().requires_grad_()
            inputs = torch.cat([leaf, memory.backbone.embed(context.ids)], 1)
            hidden = memory.model.base_model(inputs_embeds=inputs, use_cache=False)[0]
            logits = F.linear(hidden[:, SLOTS - 1 : -1], head)
            loss = F.cross_entropy(logits.flatten(0, 1), context.ids.flatten(), reduction="sum")
            torch.autograd.grad(loss, leaf)

    return in_turn({"write": lambda: memory.write(context), "bare": bare}, rounds)


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return `work(*arguments)`, called in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


@click.command()
@click.option("--steps", default="1,2,5", help="Numbers K of inner steps.")
@click.option("--rounds", default=5, help="Training steps to measure; the median counts.")
@click.option("--run", help="Folder of a trained run without n-grams; its weights are used.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(steps: str, rounds: int, run: str | None, as_json: bool) -> None:
    """Print time and memory of a training step, and the time of a write."""
    has_official = CHECKOUT in os.environ
    ways = [*(["official"] if has_official else []), *WAYS]
    rows = []
    for count in map(int, steps.split(",")):
        costs: dict[str, Cost] = {
            way: alone(training_step, way, count, rounds, run) for way in ways
        }
        base = costs[ways[0]]
        seconds = alone(inference, count, rounds, run)
        written = ratio(seconds["write"], seconds["bare"]).median
        for way, cost in costs.items():
            row = {
                "K": count,
                "way": way,
                "seconds": cost.seconds,
                "time": cost.seconds / base.seconds,
                "megabytes": cost.bytes / 2**20,
                "memory": cost.bytes / base.bytes,
                "loss": cost.loss,
            }
            rows.append(row)
            if not as_json:
                click.echo(
                    f"K={count} {way:22} {cost.seconds:6.2f} s {row['time']:5.2f}x  "
                    f"{row['megabytes']:7.0f} MB {row['memory']:5.2f}x  loss {cost.loss:.6f}"
                )
        rows.append(
            {"K": count, "way": "write", "seconds": median(seconds["write"]), "time": written}
        )
        if not as_json:
            click.echo(f"K={count} a write at inference, of the bare passes: {written:.2f}x")
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
