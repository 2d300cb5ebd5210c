"""The scan's algorithms against the loop over tokens, on one core: forward and backward, in one run.

    python benchmarks/scan.py

The loop is this repository's own; with MEMWRITE_OFFICIAL_DELTA=FOLDER that of δ-mem's authors runs beside it, from a checkout
of github.com/declare-lab/delta-Mem. Only ratios within a run mean something elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import click
import torch
from memwrite_delta import chunked, kernel, naive
from memwrite_delta.scan import scan_with
from timing import in_turn, ratio
from torch import Tensor
from torch.nn import functional as F

SIZES = ((8, 8192), (64, 4096))  # rank and tokens
CHECKOUT = "MEMWRITE_OFFICIAL_DELTA"
Run = Callable[..., tuple[Tensor, Tensor]]
Work = Callable[[], None]


def inputs_of(rank: int, tokens: int) -> list[Tensor]:
    """Return inputs as in δ-mem, of one sequence and one head: unit queries and keys, coupled gates for every row of S, float32."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, values, score = torch.randn(4, 1, tokens, 1, rank, generator=generator)
    score = score - 1.5
    beta = score.sigmoid()
    state = torch.randn(1, 1, rank, rank, generator=generator)
    unit = (F.normalize(x, dim=-1) for x in (queries, keys))
    return [*unit, values, F.logsigmoid(-score), beta, beta.clone(), state]


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


def algorithms() -> dict[str, Run]:
    """Return all algorithms by name, the loops first."""
    runs: dict[str, Run] = {"loop": naive.scan}
    if CHECKOUT in os.environ:
        runs["δ-mem's loop"] = official(os.environ[CHECKOUT])
    runs["chunked"] = lambda *x: scan_with(chunked, x)
    runs["compiled"] = lambda *x: scan_with(kernel, x)
    return runs


def measure(rank: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row of the table for each algorithm; the loop comes first."""
    inputs = inputs_of(rank, tokens)
    expected, _ = naive.scan(*(x.double() for x in inputs))
    runs = algorithms()
    works = {name: works_of(run, inputs) for name, run in runs.items()}
    forward = in_turn({name: work[0] for name, work in works.items()}, rounds)
    both = in_turn({name: work[1] for name, work in works.items()}, rounds)
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
        }
        for name, run in runs.items()
    ]


@click.command()
@click.option(
    "--rounds", default=5, show_default=True, help="Rounds; in each, all algorithms take a turn."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(rounds: int, as_json: bool) -> None:
    """Time the scan and compare it with the float64 oracle."""
    torch.set_num_threads(1)
    rows = [row for rank, tokens in SIZES for row in measure(rank, tokens, rounds)]
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, "rows": rows}))
        return
    click.echo("rank tokens  algorithm     forward        forward+backward     error of reads")
    for row in rows:
        click.echo(
            f"{row['rank']:4} {row['tokens']:6}  {row['algorithm']:12}"
            f"{row['forward_seconds'] * 1e3:8.1f} ms {row['forward_ratio']:5.0f}×"
            f"{row['seconds'] * 1e3:10.1f} ms {row['ratio']:5.0f}×{row['error']:15.0e}"
        )


if __name__ == "__main__":
    main()
