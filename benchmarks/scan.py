"""The scan's algorithms against the loop over tokens, on one core: forward and backward, in one run.

    python benchmarks/scan.py

The loop is this repository's own, or with MEMWRITE_OFFICIAL_DELTA=FOLDER that of δ-mem's authors, from a checkout of
github.com/declare-lab/delta-Mem. Only ratios within a run mean something elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from memwrite_delta import chunked, kernel, naive
from memwrite_delta.scan import scan_with
from timing import median
from torch import Tensor
from torch.nn import functional as F

SIZES = ((8, 8192), (64, 4096))  # rank and tokens
Run = Callable[..., tuple[Tensor, Tensor]]


def inputs_of(rank: int, tokens: int) -> list[Tensor]:
    """δ-mem's, of one sequence and one head: unit queries and keys, coupled gates for every row of S, float32."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, values, score = torch.randn(4, 1, tokens, 1, rank, generator=generator)
    score = score - 1.5
    beta = score.sigmoid()
    state = torch.randn(1, 1, rank, rank, generator=generator)
    unit = (F.normalize(x, dim=-1) for x in (queries, keys))
    return [*unit, values, F.logsigmoid(-score), beta, beta.clone(), state]


def official(folder: str) -> Run:
    """The authors' loop, which takes no head axis."""
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


def seconds(run: Run, inputs: Sequence[Tensor], repeats: int) -> tuple[float, float]:
    """Medians of forward without a graph, and of forward and backward."""
    leaves = [x.clone().requires_grad_() for x in inputs]

    def forward() -> None:
        with torch.no_grad():
            run(*inputs)

    def both() -> None:
        reads, state = run(*leaves)
        torch.autograd.grad(reads.sum() + state.sum(), leaves)

    return median(forward, repeats), median(both, repeats)


def measure(rank: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """A row of the table for each algorithm; the loop comes first and is measured once."""
    inputs = inputs_of(rank, tokens)
    expected, _ = naive.scan(*(x.double() for x in inputs))
    folder = os.environ.get("MEMWRITE_OFFICIAL_DELTA")
    runs: dict[str, Run] = {
        "δ-mem's loop" if folder else "loop": official(folder) if folder else naive.scan,
        "chunked": lambda *x: scan_with(chunked, x),
        "compiled": lambda *x: scan_with(kernel, x),
    }
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        error = (run(*inputs)[0] - expected).abs().max().item()
        forward, both = seconds(run, inputs, repeats if rows else 1)
        row = {"rank": rank, "tokens": tokens, "algorithm": name, "error": error}
        rows.append({**row, "forward_seconds": forward, "seconds": both})
    for row in rows:
        row["forward_ratio"] = rows[0]["forward_seconds"] / row["forward_seconds"]
        row["ratio"] = rows[0]["seconds"] / row["seconds"]
    return rows


@click.command()
@click.option("--repeats", default=7, show_default=True, help="Of all but the loop.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(repeats: int, as_json: bool) -> None:
    """Time the scan and compare it with the float64 oracle."""
    torch.set_num_threads(1)
    rows = [row for rank, tokens in SIZES for row in measure(rank, tokens, repeats)]
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
