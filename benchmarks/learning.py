"""What memories of every family learn around one frozen model: trainings one after the other, and a table of those that are done.

    python benchmarks/learning.py train runs/learning
    python benchmarks/learning.py table runs/learning

Each is a `memwrite train` in a process of its own, until it answers 99 % of held-out queries or its steps are over. A training that
was interrupted goes on, and one that is done is left alone. `commands` prints all of them. `overwrite` starts from what was trained on `kv`.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from memwrite import Memory
from memwrite.backbones.tokenizers import ALPHABET
from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.evaluation.run import evaluate_run
from memwrite.evaluation.scores import fano_bits
from memwrite.tasks.base import collate
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.tasks.mqar import VALUES
from memwrite.utils.cpu import tuned_cpu

Command = Callable[..., None]
ENDS = ("training.until=0.99", "training.every=100")
#: Overrides of a task, and values that each of its keys has one of.
TASKS: dict[str, tuple[tuple[str, ...], int]] = {
    "kv": ((), len(ALPHABET) ** 2),
    "mqar": (
        (
            "task.name=mqar",
            "task.params.pairs=8",
            "task.params.curriculum=[4]",
            "training.steps=600",
        ),
        len(VALUES),
    ),
    "overwrite": (
        (
            "task.name=overwrite",
            "task.params.pairs=4",
            "task.params.writes=2",
            "training.steps=300",
        ),
        len(ALPHABET) ** 2,
    ),
}


def _writer(name: str, *params: str, steps: int = 1500) -> tuple[str, ...]:
    given = (f"writer.params.{param}" for param in ("rank=64", *params))
    return "configs/ridge-kv.yaml", f"writer.name={name}", *given, f"training.steps={steps}"


#: A config and its overrides, for key-value retrieval.
RECIPES: dict[str, tuple[str, ...]] = {
    "ridge": ("configs/ridge-kv.yaml",),
    "titans": ("configs/titans-kv.yaml",),
    "ttt-linear": _writer("ttt-linear", "chunk=8"),
    "mesa": _writer("mesa", "solver=cg", "iterations=10"),
    "lact": (*_writer("lact", "learning_rate=30", steps=600), "reader.params.alpha=2048"),
    "associative": ("configs/associative-kv.yaml",),
    "delta": _writer("delta", "beta_bias=0.0", "forgetting=none", steps=3000),
    "titans-mlp": _writer("titans-mlp", "chunk=1"),
    "ttt-mlp": _writer("ttt-mlp", "chunk=1"),
}


@dataclass(frozen=True)
class Training:
    """One training, and its run folder in `runs`."""

    task: str
    memory: str
    seed: int
    runs: Path

    @property
    def out(self) -> Path:
        """Return its run folder."""
        return self.runs / f"{self.task}-{self.memory}-{self.seed}"

    @property
    def done(self) -> bool:
        """Say whether it is finished."""
        return (self.out / CONFIG_FILE).exists()

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of `memwrite train`."""
        config, *given = RECIPES[self.memory]
        start = []
        if self.task == "overwrite":
            start = [f"training.start={Training('kv', self.memory, self.seed, self.runs).out}"]
        return [
            config,
            *given,
            *TASKS[self.task][0],
            *ENDS,
            *start,
            f"seed={self.seed}",
            f"training.out={self.out}",
        ]


def trainings(
    runs: Path, tasks: Sequence[str], memories: Sequence[str], seeds: int
) -> Iterator[Training]:
    """Yield the trainings of these, in the order in which they are run."""
    for task in tasks or TASKS:
        for seed in range(seeds):
            for memory in memories or RECIPES:
                yield Training(task, memory, seed, runs)


def evaluation(run: Path) -> dict[str, Any]:
    """Return what `memwrite eval RUN --examples 512 --seed 1` says, kept in the run folder once it was measured."""
    kept = run / "evaluation.json"
    if not kept.exists():
        measured = evaluate_run(run, seed=1, examples=512).as_dict()
        kept.write_text(json.dumps(measured) + "\n")
    report: dict[str, Any] = json.loads(kept.read_text())
    return report


def row(training: Training) -> str:
    """Return what a finished training has learned as a row of a table."""
    report = evaluation(training.out)
    memory = Memory.from_config(training.out).eval()
    exact, zero, other = (
        report[n]["exact_match"] for n in ("memory", "zero_state", "shuffled_state")
    )
    numbers, pairs = memory.writer.spec.floats, report["params"]["pairs"]
    bits = pairs * fano_bits(exact, TASKS[training.task][1]) / numbers
    log = [json.loads(line) for line in (training.out / "log.jsonl").read_text().splitlines()]
    return (
        f"| {training.task} | `{training.memory}` | {training.seed} | {numbers:,} | {exact:.1%} | {zero:.1%} | {other:.1%} | "
        f"{bits:.4f} | {written(memory):,.0f} | {log[-1]['step']:,} | {log[-1]['cpu_seconds']:.0f} |"
    )


@tuned_cpu()
def written(memory: Memory) -> float:
    """Return the tokens that are written in a CPU second, 32 contexts of eight pairs at a time."""
    examples = KeyValueTask(KeyValueConfig(), memory.backbone.tokenizer).fresh(32, 0)
    context = collate([examples[i] for i in range(32)])["batch"].context
    seconds = []
    for _ in range(6):
        start = time.process_time()
        with torch.no_grad():
            memory.write(context)
        seconds.append(time.process_time() - start)
    return int(context.mask.sum()) / min(seconds)


@click.group()
def main() -> None:
    """Train memories of every family, and print what they have learned."""
    torch.set_num_threads(1)


def selected(command: Command) -> Command:
    """Let a command say which trainings it is about."""
    for option in (
        click.option("--seeds", default=2, show_default=True, help="How many."),
        click.option(
            "--memory",
            "memories",
            multiple=True,
            type=click.Choice(list(RECIPES)),
            help="Default: all.",
        ),
        click.option(
            "--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), help="Default: all."
        ),
        click.argument("runs", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


@main.command()
@selected
def commands(runs: Path, tasks: list[str], memories: list[str], seeds: int) -> None:
    """Print the command of each training."""
    for training in trainings(runs, tasks, memories, seeds):
        click.echo(shlex.join(["memwrite", "train", *training.arguments]))


@main.command()
@selected
def train(runs: Path, tasks: list[str], memories: list[str], seeds: int) -> None:
    """Run the trainings that are not done yet."""
    for training in trainings(runs, tasks, memories, seeds):
        if not training.done:
            subprocess.run(
                [sys.executable, "-m", "memwrite", "train", *training.arguments], check=True
            )


@main.command()
@selected
def table(runs: Path, tasks: list[str], memories: list[str], seeds: int) -> None:
    """Print a row for each training that is done."""
    columns = [
        "task",
        "writer",
        "seed",
        "numbers in the state",
        "exact match",
        "from zeros",
        "from another's state",
    ]
    columns += ["bits per number", "tokens written per CPU second", "steps", "CPU seconds"]
    click.echo(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for training in trainings(runs, tasks, memories, seeds):
        if training.done:
            click.echo(row(training))


if __name__ == "__main__":
    main()
