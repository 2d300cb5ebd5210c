"""The benchmark of record: scan, write, training step, read and store, each beside what it is to be measured by, in one run.

    make bench

Baselines are the naive oracles of this repository, the ways that a user would go without it, and the authors' own code where
MEMWRITE_OFFICIAL_GRADMEM, MEMWRITE_OFFICIAL_DELTA, MEMWRITE_OFFICIAL_FLA, MEMWRITE_OFFICIAL_TTT and MEMWRITE_OFFICIAL_LACT name
checkouts of github.com/yurakuratov/gradmem, declare-lab/delta-Mem, fla-org/flash-linear-attention, test-time-training/ttt-lm-pytorch
and a1600012888/LaCT there. Both sides run in turn; only ratios within a run mean something elsewhere. The report goes to
docs/benchmarks.md, with its figures and a plot in docs/benchmarks/.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click
import fast_weights
import mesa
import official
import reading
import scan
import second_order
import storing
import torch
from memwrite_forward import naive as naive_forward
from memwrite_forward.writer import ForwardWriter
from memwrite_gradient import naive as naive_gradient
from memwrite_gradient.writer import GradientWriter
from rows import Row, compared, plot, table
from second_order import alone
from timing import Ratio, in_turn
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.evaluation.machine import machine
from memwrite.inference.prefill_cache import PrefillCache
from memwrite.training.loss import training_loss

ORACLE, OFFICIAL = "oracle", "official code"


def scans(rounds: int) -> Iterator[Row]:
    """Time the delta rule over a sequence, forward and backward, in float32."""
    for rank, tokens in scan.SIZES:
        inputs = scan.inputs_of(rank, tokens)
        runs = scan.algorithms()
        works = {name: scan.works_of(run, inputs)[1] for name, run in runs.items()}
        seconds = in_turn(works, rounds)
        reads = {name: run(*inputs)[0] for name, run in runs.items()}
        for baseline in ("loop", "δ-mem's loop"):
            if baseline in runs:
                yield compared(
                    "scan",
                    f"rank {rank}, {tokens:,} tokens, forward and backward",
                    OFFICIAL if baseline != "loop" else ORACLE,
                    seconds["compiled"],
                    seconds[baseline],
                    difference=_difference(reads["compiled"], reads[baseline]),
                )


def regressions(rounds: int) -> Iterator[Row]:
    """Time the Mesa layer's scan over a sequence, forward and backward, in float32."""
    for rank, tokens in mesa.SIZES:
        inputs = mesa.inputs_of(rank, tokens)
        runs = mesa.algorithms(rank)
        works = {name: scan.works_of(run, inputs)[1] for name, run in runs.items()}
        seconds = in_turn(works, rounds)
        states = {name: run(*inputs)[1] for name, run in runs.items()}
        for solver in ("exact", "cg"):
            for baseline in (name for name in runs if "loop" in name):
                yield compared(
                    "regression",
                    f"Mesa, {solver}, rank {rank}, {tokens:,} tokens, forward and backward",
                    OFFICIAL if baseline != "loop" else ORACLE,
                    seconds[solver],
                    seconds[baseline],
                    difference=_difference(states[solver], states[baseline]),
                )


def networks(rounds: int) -> Iterator[Row]:
    """Time the scans of fast weights over a sequence, forward and backward, in float32."""
    for name, (tokens, runs) in fast_weights.problems().items():
        works = {way: fast_weights.work_of(run, tokens) for way, run in runs.items()}
        seconds = in_turn(works, rounds)
        reads = {way: run().detach() for way, run in runs.items()}
        for way, baseline in (("loop", ORACLE), ("official code", OFFICIAL)):
            # The authors of TTT read behind a token's write, so that their reads are others.
            alike = way == "loop" or name == "lact"
            if way in runs:
                yield compared(
                    "fast weights",
                    f"{name}, rank {fast_weights.RANK}, {fast_weights.TOKENS:,} tokens, forward and backward",
                    baseline,
                    seconds["ours"],
                    seconds[way],
                    difference=_difference(reads["ours"], reads[way]) if alike else None,
                )


def writes(rounds: int) -> Iterator[Row]:
    """Time writes of contexts and models of the paper's size, with random weights."""
    yield from _beside_oracles(rounds)
    for steps in (1, 2, 5):
        yield from _beside_passes(steps, rounds)


def _beside_oracles(rounds: int) -> Iterator[Row]:
    memory = second_order.memory_of(1, write_head=False, reconstruction_weight=0.0).eval()
    forward = _forward().eval()
    for model in (memory, forward):
        model.requires_grad_(False)
    context = second_order.batch_of(memory).context
    first = Tokens(context.ids[:1], context.mask[:1])
    ids = first.ids[0].tolist()
    writer, other = memory.writer, forward.writer
    assert isinstance(writer, GradientWriter)
    assert isinstance(other, ForwardWriter)
    slots, others, lr = writer.fast.slots, other.slots, writer.config.lr
    oracles: dict[str, tuple[Memory, Callable[[], Tensor]]] = {
        "gradient writer, K=1": (
            memory,
            lambda: naive_gradient.write(memory.backbone, slots, ids, 1, lr),
        ),
        "forward writer": (
            forward,
            torch.no_grad()(lambda: naive_forward.write(forward.backbone, others, ids, 1)),
        ),
    }
    for name, (ours, oracle) in oracles.items():
        times = in_turn(
            {
                "one": partial(ours.write, first),
                "batch": partial(ours.write, context),
                "oracle": oracle,
            },
            rounds,
        )
        difference = _difference(ours.write(first).state["memory"][0], oracle())
        rows = len(context.ids)
        for what, seconds in (
            ("one context", times["one"]),
            (f"each of {rows} contexts at once", [s / rows for s in times["batch"]]),
        ):
            yield compared(
                "write", f"{name}, {what}", ORACLE, seconds, times["oracle"], difference=difference
            )


def _beside_passes(steps: int, rounds: int) -> Iterator[Row]:
    what = f"gradient writer, K={steps}, {second_order.BATCH} contexts"
    seconds = alone(second_order.inference, steps, rounds)
    yield compared("write", what, "bare model's passes", seconds["write"], seconds["bare"])
    if official.CHECKOUT in os.environ:
        seconds = alone(answering, steps, rounds)
        what = f"{what} and an answer"
        yield compared("write", what, OFFICIAL, seconds["ours"], seconds["theirs"])


def _forward() -> Memory:
    model = second_order.memory_of(1).config.backbone
    return Memory.from_config(
        {
            "backbone": asdict(model),
            "writer": {"name": "forward", "params": {"slots": second_order.SLOTS}},
            "reader": {"name": "prefix"},
        }
    )


def answering(steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a write and a read by memwrite and by the authors' code, without training; to be called in a fresh process."""
    torch.set_num_threads(1)
    memory = second_order.memory_of(steps).eval()
    batch = second_order.batch_of(memory)
    model = official.official_model(memory).eval()

    @torch.no_grad()
    def ours() -> None:
        training_loss(memory, batch)

    def theirs() -> None:
        official.outputs(model, batch)

    return in_turn({"ours": ours, "theirs": theirs}, rounds)


def training(rounds: int) -> Iterator[Row]:
    """Measure time and peak memory of a training step through K inner steps, every way in a process of its own."""
    has_official = official.CHECKOUT in os.environ
    for steps in (1, 2, 5):
        ways = [*(["official"] if has_official else []), *second_order.WAYS]
        costs = {way: alone(second_order.training_step, way, steps, rounds) for way in ways}
        base = costs[ways[0]]
        for way in ways[1:]:
            what = f"K={steps}, {way.removeprefix('memwrite, ').replace('memwrite', 'as it is')}"
            baseline = OFFICIAL if has_official else ORACLE
            difference = abs(costs[way].loss - base.loss)
            row = compared(
                "training step",
                what,
                baseline,
                costs[way].rounds,
                base.rounds,
                difference=difference,
            )
            yield row
            used, instead = costs[way].bytes / 2**20, base.bytes / 2**20
            times = Ratio(*[instead / used] * 3)
            yield replace(
                row, part="training memory", times=times, ours=used, theirs=instead, unit="MB"
            )


@torch.no_grad()
def reads(rounds: int) -> Iterator[Row]:
    """Time the first token of an answer, from a memory and from the context read again by transformers."""
    memory = Memory.from_config(reading.CONFIG)
    memory.prefills = PrefillCache()
    for length in (256, 1024, 4096):
        runs = reading.ways(memory, length)
        seconds = in_turn(runs, 3 * rounds, time.perf_counter)
        yield compared(
            "read",
            f"first token, context of {length:,} tokens",
            "context read again",
            seconds["asked"],
            seconds["reread"],
        )


def stores(rounds: int) -> Iterator[Row]:
    """Time documents written into a store, and one memory read among many."""
    memory, memories = Memory.from_config(storing.MODEL), 100_000
    with tempfile.TemporaryDirectory() as name:
        seconds = storing.bulk(memory, Path(name), rounds)
        yield compared(
            "store",
            f"{storing.DOCUMENTS:,} documents written and kept, in batches",
            "one at a time",
            seconds["batches"],
            seconds["one at a time"],
        )
        kept = storing.keeping(memory, Path(name), memories)
        yield compared(
            "store",
            f"one of {memories:,} memories read by its key",
            "a state file",
            kept["read"],
            kept["file"],
        )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "scan": scans,
    "regression": regressions,
    "fast weights": networks,
    "write": writes,
    "training": training,
    "read": reads,
    "store": stores,
}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs"), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--parts", default=",".join(PARTS), show_default=True)
def main(out: Path, rounds: int, parts: str) -> None:
    """Measure everything and write the report."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    rows = []
    for part in parts.split(","):
        torch.set_num_threads(threads if part == "store" else 1)
        for row in PARTS[part](rounds):
            rows.append(row)
            click.echo(f"{row.part}: {row.what} / {row.baseline}: {row.times}")
    folder = out / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    report = {"machine": about, "rounds": rounds, "rows": [asdict(row) for row in rows]}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, folder / "ratios.png")
    (out / "benchmarks.md").write_text(table(rows, about))
    click.echo(f"report: {out / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
