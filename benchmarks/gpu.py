"""The measurements that want a GPU, one table at a time, in the order in which they are worth its time.

    python benchmarks/gpu.py TABLE --data FOLDER --out runs/gpu [--device cuda] [--backbone smollm2-135m] [--seeds 0,1,2]

TABLE is checks, value-kept, learning, key-value, scan or latency. FOLDER holds the data of the configs: xquad/, squad/,
wikitext-2/ and bAbI's qa*_train.txt. A table is a list of commands, which are the same configs and benchmarks as on a CPU with
`backbone.device` overridden; `--dry-run` prints them. An interrupted table goes on where it stopped. What can be brought back lies
in OUT: JSON files, reports, and run folders with their adapters. `--small` takes sizes that only show that everything starts.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Job:
    """A command, done once the file `done` is there, which it makes itself or prints as its output."""

    argv: Sequence[str]
    done: Path
    prints: bool = False


@dataclass(frozen=True)
class Choice:
    """What the options of the command line say; see the head of this file."""

    data: Path
    out: Path
    device: str
    backbone: str
    seeds: Sequence[int]
    small: bool

    def training(self, config: str, name: str, *overrides: str) -> list[Job]:
        """Return a training, and the evaluation of what it made."""
        run = self.out / name
        words = [f"backbone.device={self.device}", *overrides, f"training.out={run}"]
        if self.small:
            words += ["training.steps=1", "training.every=1", "training.warmup=1"]
            words += ["training.batch_size=2", "training.accumulate=1", "training.stages=[]"]
        train = [*MEMWRITE, "train", config, *words]
        evaluate = [
            *MEMWRITE,
            "eval",
            str(run),
            "--json",
            *(["--examples", "2"] if self.small else []),
        ]
        return [
            Job(train, run / "config.yaml"),
            Job(evaluate, self.out / f"{name}.json", prints=True),
        ]


MEMWRITE = (sys.executable, "-m", "memwrite")

#: name -> overrides of a config that writes by one gradient step into a prefix.
STEPS = {
    "gradient-k1": (),
    "gradient-k2": ("writer.params.steps=2",),
    "gradient-k5": ("writer.params.steps=5",),
}
#: name -> overrides of a config that writes by one forward pass, around a pretrained model.
PASSES = {
    "forward": (),
    "delta": ("writer={name: delta, params: {rank: 16}}", "reader.name=lora"),
    "500x": (
        "writer={name: 500x, params: {slots: 8, rank: 16, init_std: 0.0884}}",
        "reader.name=key-value",
    ),
}
BOUNDS = {
    "full-context": ("writer.name=full-context", "reader.name=key-value"),
    "no-memory": ("writer.name=no-memory", "reader.name=no-memory"),
}


def checks(choice: Choice) -> list[Job]:
    """Device and dtype: every test that needs a GPU."""
    only = ["--collect-only"] if choice.small else []
    return [
        Job(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *only, "tests/inference", "plugins/memwrite-delta"],
            choice.out / "checks.txt",
            prints=True,
        )
    ]  # fmt: skip


def value_kept(choice: Choice) -> list[Job]:
    """Value kept of every training-free writer, against ratio and length of the context."""
    lengths, ratios, count = [160, 512, 1024, 4096, 8000], "2,4,8,16,32,64,128", 100
    writers = ["compact", "h2o", "snapkv", "kvzip", "expected-attention", "attention-matching"]
    writers += [
        "streaming-llm",
        "keydiff",
        "knorm",
        "mean-pool",
        "last-tokens",
        "bm25",
        "cartridge",
    ]
    if choice.small:
        lengths, ratios, count, writers = [24], "4", 1, ["h2o", "bm25"]
    jobs = []
    for length in lengths:
        out = choice.out / f"value-kept-{length}"
        jobs.append(
            Job(
                [*MEMWRITE, "bench", "language", *writers, "--backbone", choice.backbone, "--texts",
                 str(choice.data / "wikitext-2" / "valid.txt"), "--out", str(out), "--context", str(length),
                 "--length", "8" if choice.small else "96", "--ratios", ratios, "--contexts", str(count),
                 "--device", choice.device],
                out / "index.html",
            )
        )  # fmt: skip
    return jobs


def learning(choice: Choice) -> list[Job]:
    """Learning on the pretrained model: a reader of questions, the value of plain text, and bAbI.

    On bAbI each memory begins as what plain text has taught it, with what the model has learnt of the questions in sight.
    """
    backbone = f"backbone.path={choice.backbone}"
    jobs: list[Job] = []
    for seed in choice.seeds:
        own = (backbone, f"seed={seed}")
        jobs += choice.training("configs/questions.yaml", f"questions-{seed}", *own)
        for name, overrides in BOUNDS.items():
            run = f"babi-{name}-{seed}"
            jobs += choice.training("configs/babi/smollm2.yaml", run, *own, *overrides)
        for name, memory in PASSES.items():
            run = f"distillation-{name}-{seed}"
            jobs += choice.training("configs/forward-smollm2.yaml", run, *own, *memory)
        jobs += gradients(choice, "distillation", "configs/gradient-smollm2.yaml", seed, own)
        knows = f"backbone.adapter={choice.out / f'babi-full-context-{seed}' / 'adapter'}"
        for name, memory in PASSES.items():
            text = choice.out / f"distillation-{name}-{seed}"
            begin = (f"seed={seed}", f"backbone.path={text}", knows, f"training.start={text}")
            run = f"babi-{name}-{seed}"
            jobs += choice.training("configs/babi/smollm2-forward.yaml", run, *begin, *memory)
        reads = f"backbone.path={choice.out / f'distillation-forward-{seed}'}"
        around = (f"seed={seed}", reads, knows)
        jobs += gradients(choice, "babi", "configs/babi/smollm2-gradient.yaml", seed, around)
    return jobs


def gradients(choice: Choice, what: str, config: str, seed: int, own: Sequence[str]) -> list[Job]:
    """Return the trainings of gradient writers, which start around the model that reads what the forward writer writes."""
    begin = f"training.start={choice.out / f'{what}-forward-{seed}'}"
    mean = choice.out / f"{what}-mean-{seed}"
    argv = [sys.executable, "benchmarks/mean_state.py", config, f"backbone.device={choice.device}"]
    argv += [*own, begin, f"--out={mean}", *(["--contexts=2"] if choice.small else [])]
    jobs, start = [Job(argv, mean / "config.yaml")], f"training.start={mean}"
    for name, overrides in STEPS.items():
        jobs += choice.training(config, f"{what}-{name}-{seed}", *own, *overrides, start)
    return jobs


def key_value(choice: Choice) -> list[Job]:
    """Key-value retrieval at the paper's size, from eight pairs to ninety-six, each starting from the one before."""
    counts = (2, 3) if choice.small else (8, 16, 32, 64, 96)
    size = ["backbone.params.num_hidden_layers=4", "backbone.params.max_position_embeddings=1024"]
    writers = {**STEPS, "forward": ("writer={name: forward, params: {slots: 8}}",)}
    if choice.small:
        size = ["task.params.examples=2"]
        del writers["gradient-k1"], writers["gradient-k2"]
    jobs: list[Job] = []
    for seed in choice.seeds:
        for name, overrides in writers.items():
            start: tuple[str, ...] = ()
            for pairs in counts:
                run = f"key-value-{name}-{pairs}-{seed}"
                own = (f"seed={seed}", f"task.params.pairs={pairs}", "task.params.curriculum=[]")
                jobs += choice.training(
                    "configs/gradmem-kv.yaml", run, *size, *own, *overrides, *start
                )
                start = (f"training.start={choice.out / run}",)
    return jobs


def scan(choice: Choice) -> list[Job]:
    """The scan of the delta rule against the loop over tokens, as a share of the memory's bandwidth."""
    tokens = (32,) if choice.small else (1024, 4096, 16384, 32768)
    sizes = ",".join(f"{rank}x{count}" for rank in (8, 64) for count in tokens)
    argv = [sys.executable, "benchmarks/scan.py", "--device", choice.device, "--sizes", sizes]
    rounds = ["--rounds", "1"] if choice.small else []
    return [Job([*argv, *rounds, "--json"], choice.out / "scan.json", prints=True)]


def latency(choice: Choice) -> list[Job]:
    """Write and read against the length of the context, with a model of the shape of Qwen3-4B."""
    argv = [sys.executable, "benchmarks/latency.py", "--device", choice.device, "--json"]
    argv += ["--small"] if choice.small else []
    return [Job(argv, choice.out / "latency.json", prints=True)]


TABLES: dict[str, Callable[[Choice], list[Job]]] = {
    "checks": checks,
    "value-kept": value_kept,
    "learning": learning,
    "key-value": key_value,
    "scan": scan,
    "latency": latency,
}


def run(job: Job, data: Path) -> None:
    """Run a command that is not done yet; one that fails ends the table with its exit code."""
    if job.done.exists():
        return
    job.done.parent.mkdir(parents=True, exist_ok=True)
    click.echo(shlex.join(job.argv), err=True)
    environment = {**os.environ, "MEMWRITE_DATA": str(data)}
    output = subprocess.PIPE if job.prints else None
    done = subprocess.run(job.argv, cwd=ROOT, env=environment, stdout=output, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    if job.prints:
        job.done.write_bytes(done.stdout)


@click.command()
@click.argument("table", type=click.Choice([*TABLES]))
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", default=Path("runs/gpu"), type=click.Path(path_type=Path))
@click.option("--device", default="cuda", show_default=True)
@click.option("--backbone", default="smollm2-135m", show_default=True)
@click.option("--seeds", default="0", show_default=True)
@click.option("--small", is_flag=True, help="Sizes that only show that everything starts.")
@click.option("--dry-run", is_flag=True, help="Print the commands.")
def main(
    table: str,
    data: Path,
    out: Path,
    device: str,
    backbone: str,
    seeds: str,
    small: bool,
    dry_run: bool,
) -> None:
    """Make one TABLE."""
    numbers = [int(seed) for seed in seeds.split(",")]
    choice = Choice(data.resolve(), out.resolve(), device, backbone, numbers, small)
    for job in TABLES[table](choice):
        if dry_run:
            click.echo(shlex.join(job.argv))
        else:
            run(job, choice.data)


if __name__ == "__main__":
    main()
