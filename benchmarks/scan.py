"""The scan's algorithms against the loop over tokens, on one core: forward and backward, in one run.

    python benchmarks/scan.py [--device cuda] [--sizes 8x8192,64x4096]

The loop is this repository's own; with MEMWRITE_OFFICIAL_DELTA=FOLDER that of δ-mem's authors runs beside it, from a checkout
of github.com/declare-lab/delta-Mem. Only ratios within a run mean something elsewhere. On a CPU these are CPU seconds of one core, on a
GPU seconds. "Bandwidth" is the bytes of inputs and reads, each moved once, over the time of the forward scan, as a share of what copying a
large tensor reaches in the same run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median
from typing import Any

import click
import torch
from memwrite_delta import chunked, kernel, naive
from memwrite_delta.scan import scan_with
from timing import in_turn, ratio
from torch import Tensor
from torch.nn import functional as F

CHECKOUT = "MEMWRITE_OFFICIAL_DELTA"
SIZES = ((8, 8192), (64, 4096))  # rank and tokens
Run = Callable[..., tuple[Tensor, Tensor]]
Work = Callable[[], None]


def inputs_of(rank: int, tokens: int, device: str = "cpu") -> list[Tensor]:
    """Return inputs as in δ-mem, of one sequence and one head: unit queries and keys, coupled gates for every row of S, float32."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, values, score = torch.randn(4, 1, tokens, 1, rank, generator=generator)
    score = score - 1.5
    beta = score.sigmoid()
    state = torch.randn(1, 1, rank, rank, generator=generator)
    unit = (F.normalize(x, dim=-1) for x in (queries, keys))
    inputs = [*unit, values, F.logsigmoid(-score), beta, beta.clone(), state]
    return [each.to(device) for each in inputs]


def clock_of(device: str) -> Callable[[], float]:
    """Return the CPU seconds of this process, or a clock that waits for the device."""

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return time.process_time if device == "cpu" else clock


@cache
def bandwidth(device: str) -> float:
    """Return the bytes a second that copying a large tensor moves, read and written."""
    source = torch.zeros(1 << 26, device=device)
    seconds = in_turn({"copy": source.clone}, 5, clock_of(device))["copy"]
    return 2 * source.nbytes / median(seconds)


def official(folder: str) -> Run:
    """Return the authors' loop, which takes no head axis."""
    sys.path.insert(0, folder)
    from deltamem.core.delta_impl import DeltaMemAttention  # type: ignore[import-not-found]

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        *tokens, state = inputs
        queries, keys, values, log_keep, erase, write = (x[:, :, 0] for x in tokens)
        after, reads = DeltaMemAttention._memory_affine_scan_torch(
            None, state[:, 0], queries, keys, values, log_keep.exp(), erase, write
        )
        return reads[:, :, None], after[:, None]

    return run


def works_of(run: Run, inputs: Sequence[Tensor]) -> tuple[Work, Work]:
    """Return two works: forward without a graph, and forward and backward."""
    leaves = [x.clone().requires_grad_() for x in inputs]

    def forward() -> None:
        with torch.no_grad():
            run(*inputs)

    def both() -> None:
        reads, state = run(*leaves)
        torch.autograd.grad(reads.sum() + state.sum(), leaves)

    return forward, both


def algorithms(device: str = "cpu") -> dict[str, Run]:
    """Return all algorithms that a device has by name, the loops first."""
    runs: dict[str, Run] = {"loop": naive.scan}
    if CHECKOUT in os.environ:
        runs["δ-mem's loop"] = official(os.environ[CHECKOUT])
    runs["chunked"] = lambda *x: scan_with(chunked, x)
    if device == "cpu":
        runs["compiled"] = lambda *x: scan_with(kernel, x)
    return runs


def measure(rank: int, tokens: int, rounds: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Return a row of the table for each algorithm; the loop comes first."""
    inputs = inputs_of(rank, tokens, device)
    expected, _ = naive.scan(*(x.double() for x in inputs))
    moved = sum(each.nbytes for each in inputs) + expected.nbytes // 2
    runs = algorithms(device)
    works = {name: works_of(run, inputs) for name, run in runs.items()}
    forward = in_turn({name: work[0] for name, work in works.items()}, rounds, clock_of(device))
    both = in_turn({name: work[1] for name, work in works.items()}, rounds, clock_of(device))
    return [
        {
            "rank": rank,
            "tokens": tokens,
            "algorithm": name,
            "error": (run(*inputs)[0] - expected).abs().max().item(),
            "forward_seconds": median(forward[name]),
            "seconds": median(both[name]),
            "forward_ratio": ratio(forward["loop"], forward[name]).median,
            "ratio": ratio(both["loop"], both[name]).median,
            "bandwidth": moved / median(forward[name]) / bandwidth(device),
        }
        for name, run in runs.items()
    ]


@click.command()
@click.option(
    "--rounds", default=5, show_default=True, help="Rounds; in each, all algorithms take a turn."
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--sizes", help="Ranks and tokens, as in 8x8192,64x4096.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(rounds: int, device: str, sizes: str | None, as_json: bool) -> None:
    """Time the scan and compare it with the float64 oracle."""
    torch.set_num_threads(1)
    pairs = [tuple(map(int, size.split("x"))) for size in sizes.split(",")] if sizes else SIZES
    rows = [row for rank, count in pairs for row in measure(rank, count, rounds, device)]
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, "rows": rows}))
        return
    click.echo(
        "rank tokens  algorithm     forward        forward+backward     error of reads  bandwidth"
    )
    for row in rows:
        click.echo(
            f"{row['rank']:4} {row['tokens']:6}  {row['algorithm']:12}"
            f"{row['forward_seconds'] * 1e3:8.1f} ms {row['forward_ratio']:5.0f}×"
            f"{row['seconds'] * 1e3:10.1f} ms {row['ratio']:5.0f}×{row['error']:15.0e}{row['bandwidth']:11.1%}"
        )


if __name__ == "__main__":
    main()
