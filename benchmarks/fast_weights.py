"""The scans of fast weights against the loops over tokens, on one core: forward and backward.

    python benchmarks/fast_weights.py

The loops are this repository's own; with MEMWRITE_OFFICIAL_TTT and MEMWRITE_OFFICIAL_LACT naming checkouts of
github.com/test-time-training/ttt-lm-pytorch and github.com/a1600012888/LaCT the authors' own scans run beside them. Only ratios
within a run mean something elsewhere.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import memwrite_fastweights.naive as naive
import torch
from memwrite_fastweights import lact
from memwrite_fastweights.chunks import scan
from memwrite_fastweights.lact import LactRule
from memwrite_fastweights.titans import MOMENTUM, START, TitansRule
from memwrite_fastweights.ttt import GRADIENT, TttRule
from timing import in_turn, ratio
from torch import Tensor
from torch.nn import functional as F

RANK, TOKENS, CHUNK, LARGE = 64, 1024, 16, 64
TTT, LACT = "MEMWRITE_OFFICIAL_TTT", "MEMWRITE_OFFICIAL_LACT"
#: Gives reads (1, T, 1, Dv).
Run = Callable[[], Tensor]


def tokens_of() -> dict[str, Tensor]:
    """Return tokens of one sequence and one head, keys and queries of length 1, and gates of moderate size."""
    random = torch.Generator().manual_seed(0)

    def normal(width: int) -> Tensor:
        return torch.randn(1, TOKENS, 1, width, generator=random)

    return {
        "queries": F.normalize(normal(RANK), dim=-1),
        "keys": F.normalize(normal(RANK), dim=-1),
        "values": normal(RANK),
        "step": normal(1).sigmoid(),
        "momentum": (normal(1) - 2).sigmoid(),
        "keep": (normal(1) + 5).sigmoid(),
        "rates": 0.1 * normal(3).sigmoid(),
    }


def weights_of(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Return weights of one head of these shapes."""
    random = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(1, 1, *shape, generator=random) for shape in shapes]


def titans(tokens: dict[str, Tensor]) -> dict[str, Run]:
    """Return the loop and the scan of Titans' rule on a matrix."""
    (start,) = weights_of((RANK, RANK))
    zeros, count = torch.zeros_like(start), torch.zeros(1, dtype=torch.long)
    queries, keys, values = (tokens[n] for n in ("queries", "keys", "values"))
    gates = {"step": tokens["step"], "momentum": tokens["momentum"], "keep": tokens["keep"]}

    def loop() -> Tensor:
        step, momentum, keep = (gate[..., 0] for gate in gates.values())
        parts = {"S": start}, {"S": zeros}, {"S": start}
        return naive.titans(queries, keys, values, step, momentum, keep, *parts, 0, CHUNK)[0]

    def ours() -> Tensor:
        logs = {"log_" + n: gates[n].log() for n in ("momentum", "keep")}
        given = {"keys": keys, "values": values, "step": gates["step"], **logs}
        state = {"S": start, START + "S": start, MOMENTUM + "S": zeros, "latent.count": count}
        return _reads(scan(TitansRule(("S",), CHUNK), given, queries, state)[0])

    return {"loop": loop, "ours": ours}


def ttt(tokens: dict[str, Tensor], mlp: bool) -> dict[str, Run]:
    """Return the loop, the scan and, where it is at hand, the authors' scan of TTT's rule."""
    layers = [(4 * RANK, RANK), (RANK, 4 * RANK)] if mlp else [(RANK, RANK)]
    names = ("1", "2") if mlp else ("",)
    weights = weights_of(*layers)
    start = {"W" + n: w for n, w in zip(names, weights, strict=True)}
    start |= {"b" + n: torch.zeros(1, 1, len(w[0, 0])) for n, w in zip(names, weights, strict=True)}
    zeros = {n: torch.zeros_like(w) for n, w in start.items()}
    one, tau = torch.ones(1, 1, RANK), 1 / torch.arange(1.0, CHUNK + 1)
    queries, keys, values = (tokens[n] for n in ("queries", "keys", "values"))

    def loop() -> Tensor:
        step = tokens["step"][..., 0] / RANK
        given = queries, keys, values, step, tau, start, zeros, one, one * 0, 0
        return naive.ttt(*given)[0]

    def ours() -> Tensor:
        state = {**start, **{GRADIENT + n: x for n, x in zeros.items()}}
        state |= {"norm.scale": one, "norm.shift": one * 0, "rate": torch.zeros(1)}
        state["latent.count"] = torch.zeros(1, dtype=torch.long)
        given = {"keys": keys, "values": values, "step": tokens["step"] / RANK}
        return _reads(scan(TttRule(names, CHUNK, tau), given, queries, state)[0])

    runs = {"loop": loop, "ours": ours}
    if TTT in os.environ:
        sys.path.insert(0, os.environ[TTT])
        from ttt import TTTMLP, TTTConfig, TTTLinear  # type: ignore[import-not-found]

        config = TTTConfig(
            hidden_size=RANK,
            num_attention_heads=1,
            mini_batch_size=CHUNK,
            scan_checkpoint_group_size=0,
        )
        layer = (TTTMLP if mlp else TTTLinear)(config, layer_idx=0)
        official = {n if mlp else n + "1": w for n, w in start.items()}
        for name, weight in official.items():
            given = weight[0].mT if name[0] == "W" else weight
            getattr(layer, name).data.copy_(given)

        def theirs() -> Tensor:
            step = tokens["step"] / RANK
            chunked = (
                x.reshape(1, 1, -1, CHUNK, x.shape[-1]) for x in (queries, keys, values, step)
            )
            q, k, v, rate = chunked
            rate, own = rate.mT, tau[:, None].expand(*rate.shape)
            inputs = {"XQ": q, "XK": k, "XV": v, "eta": own * rate, "token_eta": own}
            reads, _ = layer.ttt({**inputs, "ttt_lr_eta": rate}, CHUNK, None)
            return _reads(reads)[:, :, None]

        runs["official code"] = theirs
    return runs


def lact_(tokens: dict[str, Tensor]) -> dict[str, Run]:
    """Return the loop, the scan and, where it is at hand, the authors' scan of LaCT's rule."""
    shapes = ((2 * RANK, RANK), (RANK, 2 * RANK), (2 * RANK, RANK))
    start = dict(zip(lact.NAMES, weights_of(*shapes), strict=True))
    zeros = {n: torch.zeros_like(w) for n, w in start.items()}
    queries, keys, values, rates = (tokens[n] for n in ("queries", "keys", "values", "rates"))
    momentum = tokens["momentum"]

    def loop() -> Tensor:
        lengths = {n: w.norm(dim=-1, keepdim=True) for n, w in start.items()}
        parts = (momentum[..., 0], start, zeros, zeros, torch.zeros(1, 1), lengths, 0, LARGE)
        return naive.lact(queries, keys, values, rates, *parts, lambda step: step)[0]

    def ours() -> Tensor:
        state = {**start, lact.MOMENTUM: torch.zeros(1, 1)}
        for name, weight in start.items():
            state |= {lact.START + name: weight, lact.LENGTH + name: weight.norm(dim=-1)}
            state |= {lact.GRADIENT + name: zeros[name], lact.STEP + name: zeros[name]}
        state["latent.count"] = torch.zeros(1, dtype=torch.long)
        given = {"keys": keys, "values": values, "rates": rates, "momentum": momentum}
        return _reads(scan(LactRule(LARGE, False), given, queries, state)[0])

    runs = {"loop": loop, "ours": ours}
    if LACT in os.environ:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        file = Path(os.environ[LACT], "lact_llm", "lact_model", "ttt_operation.py")
        official = SimpleNamespace(**runpy.run_path(str(file))).block_causal_lact_swiglu

        def theirs() -> Tensor:
            given = (x[:, :, 0] for x in (queries, keys, values))
            rate = torch.split(rates[:, :, 0], 1, -1)
            own = [w[0] for w in start.values()]
            found = official(*own, *given, *rate, LARGE, False, momentum[:, :, 0])
            return _reads(found)[:, :, None]

        runs["official code"] = theirs
    return runs


def problems() -> dict[str, tuple[dict[str, Tensor], dict[str, Run]]]:
    """Return the tokens, and the ways to scan them, of every rule."""
    made = {}
    for name in ("titans", "ttt-linear", "ttt-mlp", "lact"):
        tokens = {n: x.requires_grad_() for n, x in tokens_of().items()}
        if name.startswith("ttt"):
            runs = ttt(tokens, name == "ttt-mlp")
        else:
            runs = titans(tokens) if name == "titans" else lact_(tokens)
        made[name] = tokens, runs
    return made


def work_of(run: Run, tokens: dict[str, Tensor]) -> Callable[[], None]:
    """Return the work of a run, and of its gradients by all tokens."""

    def work() -> None:
        torch.autograd.grad(run().sum(), list(tokens.values()), allow_unused=True)

    return work


def _reads(reads: Tensor | None) -> Tensor:
    assert reads is not None
    return reads


@click.command()
@click.option("--rounds", default=3, show_default=True, help="In each all ways take a turn.")
def main(rounds: int) -> None:
    """Time the scans of all rules."""
    torch.set_num_threads(1)
    click.echo("rule         way            forward and backward    difference from the loop")
    for name, (tokens, runs) in problems().items():
        seconds = in_turn({way: work_of(run, tokens) for way, run in runs.items()}, rounds)
        expected = runs["loop"]()
        for way, run in runs.items():
            times = ratio(seconds["loop"], seconds[way]).median
            error = (run() - expected).abs().max()
            click.echo(
                f"{name:12} {way:14}{min(seconds[way]) * 1e3:10.1f} ms {times:6.1f}×{error:15.0e}"
            )


if __name__ == "__main__":
    main()
