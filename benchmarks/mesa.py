"""The scan of a regression that is read while it is written, against the loop over tokens, on one core: forward and backward.

    python benchmarks/mesa.py

The loop is this repository's own; with MEMWRITE_OFFICIAL_FLA=FOLDER that of flash-linear-attention (its exact reference in
torch) runs beside it, from a checkout of github.com/fla-org/flash-linear-attention; it takes einops. Only ratios within a run mean
something elsewhere.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import click
import torch
from memwrite_regression import naive
from memwrite_regression.scan import Solver, scan
from scan import works_of
from timing import in_turn, ratio
from torch import Tensor
from torch.nn import functional as F

SIZES = ((16, 2048), (64, 512))  # rank and tokens
CHECKOUT = "MEMWRITE_OFFICIAL_FLA"
Outputs = tuple[Tensor, Tensor]


def inputs_of(rank: int, tokens: int) -> list[Tensor]:
    """Return inputs of one sequence and one head: unit queries and keys, a keep of 0.993 and a weight of a half at the middle, Λ = 1."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, 1, tokens, 1, rank, generator=generator)
    keep, weight = torch.randn(2, 1, tokens, 1, generator=generator)
    unit = (F.normalize(x, dim=-1) for x in (queries, keys))
    zeros = torch.zeros(1, 1, rank, rank)
    ridge = torch.ones(1, 1, rank)
    return [*unit, values, F.logsigmoid(keep + 5), weight.sigmoid(), ridge, zeros, zeros.clone()]


def by_scan(solver: Solver) -> Callable[..., Outputs]:
    """Return the scan of a solver: reads and S."""

    def run(*inputs: Tensor) -> Outputs:
        queries, keys, values, log_keep, weight, ridge, state, gram = inputs
        return scan(queries, keys, values, log_keep, weight, ridge, state, gram, solver)[:2]

    return run


def official(folder: str) -> Callable[..., Outputs]:
    """Return flash-linear-attention's exact reference; it reads behind its writes."""
    file = Path(folder, "fla", "ops", "mesa_net", "naive.py")
    exact = runpy.run_path(str(file))["naive_mesa_net_exact"]

    def run(*inputs: Tensor) -> Outputs:
        queries, keys, values, log_keep, weight, ridge, state, gram = inputs
        reads, _, after = exact(
            queries, keys, values, log_keep, ridge[0], weight, gram, state.mT.contiguous()
        )
        return reads, after.mT

    return run


def algorithms(rank: int) -> dict[str, Callable[..., Outputs]]:
    """Return all algorithms by name, the loops first; conjugate gradients take as many iterations as the paper's 30, or the rank."""
    runs: dict[str, Callable[..., Outputs]] = {"loop": lambda *inputs: naive.scan(*inputs)[:2]}
    if CHECKOUT in os.environ:
        runs["official loop"] = official(os.environ[CHECKOUT])
    runs["exact"] = by_scan(Solver())
    runs["cg"] = by_scan(Solver(iterations=min(rank, 30)))
    return runs


@click.command()
@click.option("--rounds", default=3, show_default=True, help="In each all algorithms take a turn.")
def main(rounds: int) -> None:
    """Time the scan and compare it with the float64 oracle."""
    torch.set_num_threads(1)
    click.echo("rank tokens  algorithm       forward and backward    error of reads")
    for rank, tokens in SIZES:
        inputs = inputs_of(rank, tokens)
        expected = naive.scan(*(x.double() for x in inputs))[0]
        runs = algorithms(rank)
        seconds = in_turn({n: works_of(run, inputs)[1] for n, run in runs.items()}, rounds)
        for name, run in runs.items():
            error = (
                "" if name == "official loop" else f"{(run(*inputs)[0] - expected).abs().max():.0e}"
            )
            times = ratio(seconds["loop"], seconds[name]).median
            click.echo(
                f"{rank:4} {tokens:6}  {name:14}{min(seconds[name]) * 1e3:10.1f} ms {times:6.1f}×{error:>18}"
            )


if __name__ == "__main__":
    main()
