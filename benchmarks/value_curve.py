"""What a distillation has closed of the gap between no memory and the context in sight, against CPU hours.

    MEMWRITE_DATA=/folder/of/the/text python benchmarks/value_curve.py RUN... --out docs/language/distillation.svg

The gap is the divergence of the model without a memory from itself with the context in sight, in nats a token of the held-out passages of
RUN, and what is left of it is the held-out loss in RUN's log. All runs must hold out the same passages. How much is kept of the value in bits
is what `memwrite eval RUN` says, and differs a little.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch
from matplotlib.figure import Figure

from memwrite import Memory
from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.config import Config, PartConfig, load_config, part_config
from memwrite.evaluation.page import plain, svg
from memwrite.plugins import registry
from memwrite.tasks.base import collate
from memwrite.training.distillation import Teacher
from memwrite.training.loss import training_loss
from memwrite.utils.cpu import tuned_cpu

#: Passages that are read together.
TOGETHER = 8


def gap(config: Config) -> float:
    """Return the divergence of no memory from the context in sight, of the model before its training."""
    none, backbone = PartConfig("no-memory"), replace(config.backbone, lora_rank=0)
    memory = Memory.from_config(replace(config, backbone=backbone, writer=none, reader=none))
    assert config.task is not None
    plugin = registry().task(config.task.name)
    params = part_config(plugin.config, config.task.params, "task.params")
    held_out = plugin.build(params, memory.backbone.tokenizer).evaluation()
    losses = []
    for start in range(0, len(held_out), TOGETHER):
        some = [held_out[i] for i in range(start, min(start + TOGETHER, len(held_out)))]
        batch = collate(some)["batch"]
        with torch.no_grad():
            taught = Teacher(memory, batch.context).predict(batch)
            losses += [float(training_loss(memory, batch, taught).loss)] * len(some)
    return sum(losses) / len(losses)


def curve(run: Path, whole: float) -> list[tuple[float, float]]:
    """Return CPU hours and the share of the gap that was closed, at each evaluation; nothing is closed at the start."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    points = [
        (e["cpu_seconds"] / 3600, 1 - e["eval_loss"] / whole) for e in log if "eval_loss" in e
    ]
    return [(0.0, 0.0), *points]


def plot(curves: Sequence[tuple[str, list[tuple[float, float]]]]) -> str:
    """Return the curves as an SVG element."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in curves:
        axes.plot(*zip(*points, strict=True), ".-", label=name)
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xlabel="CPU hours", ylabel="share of the gap that is closed", ylim=(0, 1.03))
    axes.legend(frameon=False, loc="lower right")
    return svg(plain(figure))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where the plot is written, as an SVG."
)
@tuned_cpu()
def main(runs: tuple[Path, ...], out: Path | None) -> None:
    """Print the curves of RUNS, and draw them."""
    torch.set_num_threads(1)
    whole = gap(load_config(runs[0] / CONFIG_FILE, []))
    click.echo(f"no memory: {whole:.3f} nats a token from the context in sight")
    curves = [(run.name, curve(run, whole)) for run in runs]
    for name, points in curves:
        for hours, closed in points:
            click.echo(f"| {name} | {hours:.2f} | {closed:.2f} |")
    if out is not None:
        out.write_text(plot(curves))


if __name__ == "__main__":
    main()
