"""What memories of every family learn around one frozen model: trainings one after the other, and a table of those that are done.

    python benchmarks/learning.py train runs/learning
    python benchmarks/learning.py table runs/learning
    MEMWRITE_DATA=/folder/of/the/text python benchmarks/learning.py train runs/learning --task text

Each is a `memwrite train` in a process of its own, until it answers 99 % of held-out queries or its steps are over. A training that
was interrupted goes on, and one that is done is left alone. `commands` prints all of them. `overwrite` starts from what was trained on
`kv`. `rates` compares learning rates in short trainings. What is trained stands in `recipes.py`.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from recipes import BUDGETS, ON_PAIRS, ON_TEXT, PAIRS, RECIPES, TEXT

from memwrite import Memory
from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.evaluation.run import evaluate_run
from memwrite.evaluation.scores import fano_bits
from memwrite.tasks.base import collate
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.training.run import train as fit
from memwrite.utils.cpu import tuned_cpu

Command = Callable[..., None]
#: Ends of trainings on pairs.
ENDS = ("training.until=0.99", "training.every=100")


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
        given = list(RECIPES[self.task][self.memory])
        if self.task in PAIRS:
            given += [*PAIRS[self.task][0], *ENDS]
        if self.task == "overwrite":
            given += [f"training.start={Training('kv', self.memory, self.seed, self.runs).out}"]
        return [*given, f"seed={self.seed}", f"training.out={self.out}"]


def trainings(
    runs: Path, tasks: Sequence[str], memories: Sequence[str], seeds: int
) -> Iterator[Training]:
    """Yield the trainings of these, in the order in which they are run."""
    for task in tasks or PAIRS:
        for seed in range(seeds):
            for memory in memories or RECIPES[task]:
                if memory in RECIPES[task]:
                    yield Training(task, memory, seed, runs)


def entries(run: Path) -> list[dict[str, Any]]:
    """Return what a training wrote into its log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def evaluation(run: Path, seed: int | None, pairs: int | None) -> dict[str, Any]:
    """Return what `memwrite eval RUN --examples 512` says, kept in the run folder once it was measured.

    Args:
        run: the folder.
        seed: of fresh examples; None for those that training has held out.
        pairs: how many are asked; None for as many as in training.
    """
    kept = run / (f"evaluation-{pairs}.json" if pairs else "evaluation.json")
    if not kept.exists():
        overrides = [f"task.params.pairs={pairs}", "task.params.curriculum=[]"] if pairs else []
        kept.write_text(
            json.dumps(evaluate_run(run, overrides, seed, examples=512).as_dict()) + "\n"
        )
    report: dict[str, Any] = json.loads(kept.read_text())
    return report


def row_of_pairs(training: Training, pairs: int | None) -> list[str]:
    """Return what a training has learned of pairs."""
    report = evaluation(training.out, 1, pairs)
    memory = Memory.from_config(training.out).eval()
    exact, zero, other = (
        report[n]["exact_match"] for n in ("memory", "zero_state", "shuffled_state")
    )
    numbers, pairs = memory.writer.spec.floats, report["params"]["pairs"]
    bits = pairs * fano_bits(exact, PAIRS[training.task][1]) / numbers
    speed = f"{written(memory):,.0f}"
    return [
        f"{numbers:,}",
        str(pairs),
        *map("{:.1%}".format, (exact, zero, other)),
        f"{bits:.4f}",
        speed,
    ]


def row_of_text(training: Training) -> list[str]:
    """Return what a training has learned of text."""
    report = evaluation(training.out, None, None)
    memory = Memory.from_config(training.out)
    names = ("memory", "unwritten", "another's state")
    own, *controls = (report["readings"][name]["value_kept"] for name in names)
    return [f"{memory.writer.spec.floats:,}", *_value(own), *(_value(c)[0] for c in controls)]


def _value(kept: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return a value kept and its interval; neither is known where passages are worth nothing."""
    if kept is None:
        return "-", "-"
    ends = kept["interval"]
    return f"{kept['mean']:.2f}", "-" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"


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
    memories = sorted({*ON_PAIRS, *ON_TEXT})
    for option in (
        click.option("--seeds", default=2, show_default=True, help="How many."),
        click.option(
            "--memory",
            "memories",
            multiple=True,
            type=click.Choice(memories),
            help="Default: all that learn the task.",
        ),
        click.option(
            "--task",
            "tasks",
            multiple=True,
            type=click.Choice(list(RECIPES)),
            help=f"Default: all but {TEXT}.",
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
def rates(runs: Path, tasks: list[str], memories: list[str], seeds: int) -> None:
    """Run short trainings with each learning rate, and print how they ended."""
    click.echo(
        "| task | writer | seed | learning rate | loss | held-out loss | held-out exact match |\n|---|---|---|---|---|---|---|"
    )
    for training in trainings(runs, tasks, memories, seeds):
        budget = BUDGETS[training.task]
        for peak in budget.compared:
            folder = training.runs / f"{training.out.name}-{peak}"
            if not (folder / CONFIG_FILE).exists():
                short = (f"training.{name}={budget.short}" for name in ("steps", "every"))
                given = [*training.arguments, *short, f"training.learning_rate={peak}"]
                fit(given[0], [*given[1:], f"training.out={folder}"])
            log = entries(folder)
            loss, held_out, exact = (
                [e[name] for e in log if name in e][-1]
                for name in ("loss", "eval_loss", "eval_exact_match")
            )
            cells = [training.task, f"`{training.memory}`", training.seed, peak]
            click.echo(table_row([*cells, f"{loss:.3f}", f"{held_out:.3f}", f"{exact:.1%}"]))


@main.command()
@selected
def train(runs: Path, tasks: list[str], memories: list[str], seeds: int) -> None:
    """Run the trainings that are not done yet."""
    for training in trainings(runs, tasks, memories, seeds):
        if not training.done:
            subprocess.run(
                [sys.executable, "-m", "memwrite", "train", *training.arguments], check=True
            )


#: Columns of the two tables, between those that name the training and those that say what it cost.
OF_PAIRS = (
    "numbers in the state",
    "pairs",
    "exact match",
    "from zeros",
    "from another's state",
    "bits per number",
    "tokens written per CPU second",
)
OF_TEXT = (
    "numbers in the state",
    "value kept",
    "95 % interval",
    "unwritten",
    "another's state",
)


@main.command()
@selected
@click.option(
    "--pairs", multiple=True, type=int, help="How many are asked; default: as many as in training."
)
def table(
    runs: Path, tasks: list[str], memories: list[str], seeds: int, pairs: tuple[int, ...]
) -> None:
    """Print a row for each training that is done."""
    done = [t for t in trainings(runs, tasks, memories, seeds) if t.done]
    rows = [(t, row_of_pairs(t, n)) for t in done if t.task != TEXT for n in pairs or (None,)]
    for columns, of_kind in (
        (OF_PAIRS, rows),
        (OF_TEXT, [(t, row_of_text(t)) for t in done if t.task == TEXT]),
    ):
        if of_kind:
            heads = ["task", "writer", "seed", *columns, "steps", "CPU seconds"]
            click.echo(f"{table_row(heads)}\n|{'---|' * len(heads)}")
        for training, cells in of_kind:
            last = entries(training.out)[-1]
            names = [training.task, f"`{training.memory}`", training.seed]
            click.echo(
                table_row([*names, *cells, f"{last['step']:,}", f"{last['cpu_seconds']:.0f}"])
            )


def table_row(cells: Sequence[object]) -> str:
    """Return cells as a row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
