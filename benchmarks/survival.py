"""How many facts each rule keeps, untrained: recall against the number of pairs, and the most bits a number of its state holds.

    python benchmarks/survival.py --out docs/capacity

Keys and values are random directions that are given to the rules, so this measures how memories change, not what a model has learned to
write. An answer is the value whose direction has the largest product with the read. Steps are fixed, the best for 32 pairs of a
few that were tried; starts are random where a rule needs one. All that a rule keeps for further writes counts as part of its state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from memwrite_armt.memory import associated, features, updated
from memwrite_bench.curves import Curve, Point, measure, state_size
from memwrite_fastweights.cell import Cell
from memwrite_fastweights.chunks import scan
from memwrite_fastweights.config import (
    LactConfig,
    TitansConfig,
    TitansMlpConfig,
    TttConfig,
    TttMlpConfig,
)
from memwrite_fastweights.lact import LactCell
from memwrite_fastweights.titans import TitansCell
from memwrite_fastweights.ttt import TttCell
from memwrite_regression.kind import recall as ridge_recall
from memwrite_specs.oracles import delta, hebbian
from torch import Tensor
from torch.nn import functional as F

from memwrite.evaluation.page import plain, svg
from memwrite.evaluation.scores import score

WIDTH, VALUES = 32, 64
PAIRS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

Tensors = Mapping[str, Tensor]
#: Writes keys and values (B, N, D) into states, name -> (B, ...), and returns these and the reads (B, N, D) of the keys.
Rule = Callable[[Tensor, Tensor], tuple[Tensors, Tensor]]


def matrix(
    oracle: Callable[[Tensor, Tensor], Tensor], keys: Tensor, values: Tensor
) -> tuple[Tensors, Tensor]:
    """Write by an oracle for matrices."""
    state = oracle(keys, values)
    return {"S": state}, keys @ state.mT


def ridge(keys: Tensor, values: Tensor) -> tuple[Tensors, Tensor]:
    """Write by ridge regression with a ridge of 0.01."""
    log_ridge = keys.new_full((len(keys), 1, WIDTH), 0.01).log()
    state = {
        "S": (values.mT @ keys)[:, None],
        "G": (keys.mT @ keys)[:, None],
        "log_ridge": log_ridge,
    }
    return state, ridge_recall(state, keys[:, :, None])[:, :, 0]


def associative(keys: Tensor, values: Tensor) -> tuple[Tensors, Tensor]:
    """Write by ARMT's associative layer, one memory token after another."""
    wide = features(keys, 3)
    memory = keys.new_zeros(len(keys), WIDTH, wide.shape[-1])
    z = torch.zeros_like(memory[:, 0])
    for k, v in zip(torch.split(wide, 1, 1), torch.split(values, 1, 1), strict=True):
        memory, z = updated(memory, z, k, v, torch.ones_like(k[..., 0]), True)
    return {"S": memory, "z": z}, associated(memory, z, wide)[0]


def fast_weights(
    cell: Cell, gates: Mapping[str, list[float]], keys: Tensor, values: Tensor
) -> tuple[Tensors, Tensor]:
    """Write by a rule of fast weights, with constant gates."""
    given = {n: keys.new_tensor(x).expand(*keys.shape[:2], 1, -1) for n, x in gates.items()}
    tokens = {"keys": keys[:, :, None], "values": values[:, :, None], **given}
    start = {n: x.detach().expand(len(keys), *x.shape) for n, x in cell.empty().items()}
    state = scan(cell.rule, tokens, None, start)[1]
    recall = cell.kind.recall
    assert recall is not None
    return state, recall(state, keys[:, :, None])[:, :, 0]


def ttt(config: TttConfig, step: float) -> Rule:
    """Return TTT's rule with τ = 1, as in the paper.

    Its keys and values have lengths of √D, as biases are written with an input of 1 beside every key; and its norm answers v − k.
    """
    cell, wide = TttCell(config, WIDTH, torch.float64), WIDTH**0.5
    with torch.no_grad():
        cell.scale.fill_(1)
        cell.norm_scale.fill_(2**0.5)
        for name, weights in cell.start.items():
            if name.startswith("W"):
                weights.normal_(std=weights.shape[-1] ** -0.5)
    rule = partial(fast_weights, cell, {"step": [step]})
    return lambda keys, values: rule(wide * keys, wide * values)


def titans(config: TitansConfig, step: float) -> Rule:
    """Return Titans' rule with its momentum of 0.12 from the start, and without forgetting."""
    gates = {"step": [step], "log_momentum": [-2.0], "log_keep": [0.0]}
    return partial(fast_weights, TitansCell(config, WIDTH, torch.float64), gates)


def lact(muon: bool, rate: float) -> Rule:
    """Return LaCT's rule without momentum."""
    config = LactConfig(rank=WIDTH, muon=muon, momentum=False)
    return partial(fast_weights, LactCell(config, WIDTH, torch.float64), {"rates": [rate] * 3})


def rules() -> dict[str, Rule]:
    """Return all rules by what they are called in the plot."""
    torch.manual_seed(0)
    return {
        "sum of outer products": partial(matrix, hebbian),
        "delta rule": partial(matrix, delta),
        "ridge": ridge,
        "titans": titans(TitansConfig(rank=WIDTH, chunk=1), 8.0),
        "titans-mlp": titans(TitansMlpConfig(rank=WIDTH, chunk=1), 8.0),
        "ttt-linear": ttt(TttConfig(rank=WIDTH, chunk=1), 0.1),
        "ttt-mlp": ttt(TttMlpConfig(rank=WIDTH, chunk=1), 0.01),
        "lact": lact(False, 10.0),
        "lact, muon": lact(True, 1.0),
        "associative": associative,
    }


@dataclass(frozen=True)
class Survival:
    """A rule on random directions, a `Mechanism` of memwrite_bench."""

    rule: Rule

    def __call__(self, pairs: int, trials: int, seed: int, /) -> Point:
        """Measure one point; the pairs depend on the arguments alone."""
        rng = torch.Generator().manual_seed(seed)

        def directions(count: int) -> Tensor:
            drawn = torch.randn(trials, count, WIDTH, generator=rng, dtype=torch.float64)
            return F.normalize(drawn, dim=-1)

        keys, codes = directions(pairs), directions(VALUES)
        ids = torch.randint(VALUES, (trials, pairs), generator=rng)
        with torch.no_grad():
            state, reads = self.rule(keys, codes[torch.arange(trials)[:, None], ids])
        decoded = (reads @ codes.mT).argmax(-1, keepdim=True)
        size = state_size(state.values())
        return Point.of(score(decoded, decoded, ids[..., None]), pairs, VALUES, size)


def best(curve: Curve) -> tuple[float, Point]:
    """Return the most bits per number, and the point where it is reached."""
    return max(((p.bits_per_float or 0.0, p) for p in curve.points), key=lambda reached: reached[0])


def plot(curves: list[Curve]) -> str:
    """Return both plots, beside each other, as an SVG element."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    survival, density = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = [colormaps["tab10"](number) for number in range(len(curves))]
    for curve, colour in zip(curves, colours, strict=True):
        right = [100 * point.exact_match for point in curve.points]
        survival.plot([p.pairs for p in curve.points], right, ".-", color=colour, label=curve.name)
    survival.set_xscale("log", base=2)
    ticks = [pairs for pairs in PAIRS if pairs & (pairs - 1) == 0]
    survival.set_xticks(ticks, [str(pairs) for pairs in ticks])
    survival.set(xlabel="pairs written", ylabel="pairs recalled, %", ylim=(0, 102))
    survival.legend(fontsize=8, frameon=False)
    places = range(len(curves), 0, -1)
    most = [best(curve) for curve in curves]
    density.barh(list(places), [bits for bits, _ in most], color=colours)
    for place, (bits, point) in zip(places, most, strict=True):
        text = f" {bits:.3g} of {point.state_floats:,}, {point.pairs} pairs"
        density.annotate(text, (bits, place), va="center", fontsize=8)
    density.set_yticks(list(places), [curve.name for curve in curves], fontsize=8)
    density.set(
        xlabel="most bits per number of the state", xlim=(0, 1.75 * max(b for b, _ in most))
    )
    return svg(plain(figure))


@click.command()
@click.option("--trials", default=64, show_default=True, help="States for each number of pairs.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for survival.svg.")
def main(trials: int, out: Path | None) -> None:
    """Measure all rules, print the most bits per number, and draw them."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    curves = []
    for name, rule in rules().items():
        curves.append(measure(name, Survival(rule), PAIRS, trials))
        bits, point = best(curves[-1])
        half = curves[-1].pairs_at(0.5)
        click.echo(
            f"| {name} | {point.state_floats:,} | {'' if half is None else round(half)} | {bits:.3f} | {point.pairs} |"
        )
    if out is not None:
        (out / "survival.svg").write_text(plot(curves))


if __name__ == "__main__":
    main()
