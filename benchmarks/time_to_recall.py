"""CPU seconds until a gradient writer has learnt to recall eight pairs, beside the authors' recipe with their code.

    MEMWRITE_OFFICIAL_GRADMEM=FOLDER python benchmarks/time_to_recall.py --seconds 1200

FOLDER is a checkout of github.com/yurakuratov/gradmem; without it only memwrite is timed. Each recipe trains in a process of its
own on one core, one after the other, until it recalls 95% of held-out pairs (two-character keys and values, K=1, 8 slots of 128
numbers) or its time is over, and prints what it recalls on the way. The recipes:

memwrite        configs/gradmem-kv.yaml, by `memwrite train`
official        their script's settings for this task: 4 layers of width 128, 4 heads, initial weights of standard deviation
                0.02, one query a context, batches of 64, AdamW at 1e-4 after 10,000 steps of warm-up, inner step size 0.04
official, wider the same with initial weights of 1/sqrt(128), which shorten its plateau most, and AdamW at 1e-3 after 100 steps of
                warm-up
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from official import CHECKOUT, official_model, outputs
from second_order import MODEL, alone
from torch.optim import AdamW

from memwrite import Memory
from memwrite.tasks.base import IGNORED, Batch, Example, Examples, collate
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.training.run import train

CONFIG = Path(__file__).parents[1] / "configs" / "gradmem-kv.yaml"
RECIPES: dict[str, dict[str, float]] = {
    "official": {"init": 0.02, "rate": 1e-4, "warmup": 10_000},
    "official, wider": {"init": 128**-0.5, "rate": 1e-3, "warmup": 100},
}
PAIRS, BATCH, HELD_OUT, EVERY, GOAL = 8, 64, 256, 100, 0.95

Curve = list[tuple[float, float]]
"""CPU seconds, and the share of held-out pairs recalled then."""


def ours(seed: int) -> Curve:
    """Return the curve of memwrite's recipe, to the end of its config; to be called in a fresh process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"seed={seed}", f"training.out={folder}/run", f"training.until={GOAL}"]
        train(CONFIG, overrides)
        log = Path(folder, "run", "log.jsonl").read_text().splitlines()
    return [
        (e["cpu_seconds"], e["eval_exact_match"])
        for e in map(json.loads, log)
        if "eval_exact_match" in e
    ]


def theirs(init: float, rate: float, warmup: int, seed: int, seconds: float) -> Curve:
    """Return the curve of the authors' code; to be called in a fresh process."""
    torch.set_num_threads(1)
    memory = _start(init, seed)
    model = official_model(memory)
    task = KeyValueTask(KeyValueConfig(pairs=PAIRS, examples=HELD_OUT), memory.backbone.tokenizer)
    held_out = list(_batches(task.evaluation()))
    optimizer = AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    warming = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / warmup, 1.0))
    curve: Curve = []
    start = time.process_time()
    for step, batch in enumerate(_batches(task.training(1_000_000, seed)), 1):
        optimizer.zero_grad()
        outputs(model, batch)["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warming.step()
        if step % EVERY == 0 or time.process_time() - start > seconds:
            recalled = _recalled(model, held_out)
            curve.append((time.process_time() - start, recalled))
            if recalled >= GOAL or curve[-1][0] > seconds:
                break
    return curve


def _start(init: float, seed: int) -> Memory:
    params: dict[str, Any] = {**MODEL, "intermediate_size": 512, "initializer_range": init}
    params["rope_parameters"] = {"rope_type": "default", "rope_theta": 500_000.0}
    writer = {"slots": 8, "steps": 1, "lr": 0.04, "write_head": True, "init_std": init}
    return Memory.from_config(
        {
            "backbone": {
                "type": "llama",
                "params": params,
                "tokenizer": "characters",
                "attention": "eager",
                "trainable": True,
            },
            "writer": {"name": "gradient", "params": {**writer, "reconstruction_weight": 0.5}},
            "reader": {"name": "prefix"},
            "seed": seed,
        }
    )


def _batches(examples: Examples) -> Iterator[Batch]:
    """Yield batches with one query per context, the next one in every context."""
    for start in range(0, len(examples), BATCH):
        rows = []
        for index in range(start, start + BATCH):
            e, turn = examples[index], index % PAIRS
            rows.append(Example(e.context, e.queries[turn : turn + 1], e.labels[turn : turn + 1]))
        yield collate(rows)["batch"]


def _recalled(model: Any, batches: list[Batch]) -> float:
    """Return the exact match; the authors' write needs gradients even here."""
    right = []
    for batch in batches:
        labels = batch.labels[:, 0]
        predicted = outputs(model, batch)["predictions"][:, :-1].argmax(-1)
        right.append(((predicted == labels) | (labels == IGNORED)).all(1))
    return float(torch.cat(right).float().mean())


@click.command()
@click.option("--seconds", default=1200.0, help="CPU seconds for each of the official recipes.")
@click.option("--seeds", default="0", help="Seeds, as in 0,1,2.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(seconds: float, seeds: str, as_json: bool) -> None:
    """Print what each recipe recalls after how many CPU seconds."""
    rows = []
    for seed in map(int, seeds.split(",")):
        curves = {"memwrite": alone(ours, seed)}
        if CHECKOUT in os.environ:
            for name, recipe in RECIPES.items():
                curves[name] = alone(theirs, *recipe.values(), seed, seconds)
        for name, curve in curves.items():
            reached = next((spent for spent, recalled in curve if recalled >= GOAL), None)
            rows.append({"recipe": name, "seed": seed, "seconds": reached, "curve": curve})
            if not as_json:
                points = "  ".join(f"{spent:.0f} s {recalled:.1%}" for spent, recalled in curve)
                click.echo(f"{name}, seed {seed}: {points}")
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
