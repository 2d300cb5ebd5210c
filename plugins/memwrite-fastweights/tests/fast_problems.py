"""Problems for the scans of all rules, drawn from a seed, and what the oracles make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from memwrite_fastweights import lact, naive
from memwrite_fastweights.chunks import COUNT, Rule, scan
from memwrite_fastweights.lact import LactRule
from memwrite_fastweights.lattice import LatticeRule
from memwrite_fastweights.titans import MOMENTUM, START, TitansRule
from memwrite_fastweights.ttt import GRADIENT, TttRule
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

GATES = ("moderate", "tiny", "near one", "extreme")
EXACT = {"atol": 1e-11, "rtol": 1e-11}
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """Sizes of a scan, and a seed for what is in it."""

    mechanism: str = "titans"
    batch: int = 2
    length: int = 11
    heads: int = 2
    width: int = 3
    height: int = 4
    chunk: int = 4
    count: int = 0
    gates: str = "moderate"
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """What a scan takes, and the oracle of its rule: a function of these to reads and the new state, the count left out.

    `learned` are the rule's own tensors.
    """

    rule: Callable[[Tensors], Rule]
    queries: Tensor
    tokens: Tensors
    state: Tensors
    oracle: Callable[[Made], Tensors]
    learned: Tensors

    def map(self, change: Callable[[Tensor], Tensor]) -> Made:
        """Change every tensor of numbers."""

        def each(tensors: Tensors) -> Tensors:
            return {n: change(x) if x.is_floating_point() else x for n, x in tensors.items()}

        parts = each(self.tokens), each(self.state), self.oracle, each(self.learned)
        return Made(self.rule, change(self.queries), *parts)

    def scanned(self) -> Tensors:
        """Scan, and return reads and the new state."""
        reads, after = scan(self.rule(self.learned), self.tokens, self.queries, self.state)
        assert reads is not None
        return {"reads": reads, **after}

    @property
    def leaves(self) -> Tensors:
        """Return all tensors that have gradients, by name."""
        state = {n: x for n, x in self.state.items() if n != COUNT}
        return {"queries": self.queries, **self.tokens, **state, **self.learned}


def gate(kind: str, draw: Tensor) -> Tensor:
    """Gates in [0, 1] of uniform draws."""
    if kind == "moderate":
        return 0.05 + 0.9 * draw
    if kind == "tiny":
        return 10 ** (-40 * draw)
    if kind == "near one":
        return 1 - 10 ** (-3 - 5 * draw)
    return (3 * draw).floor() / 2  # 0, a half and 1


def problems(**fixed: Any) -> st.SearchStrategy[Problem]:
    """Draw problems, small ones, the chunks of which begin and end anywhere."""
    two, small = st.integers(1, 2), st.integers(1, 5)
    drawn = {
        "mechanism": st.sampled_from(list(MECHANISMS)),
        "batch": two,
        "length": st.sampled_from([1, 2, 3, 4, 5, 9, 18]),
        "heads": two,
        "width": small,
        "height": small,
        "chunk": st.integers(1, 6),
        "count": st.integers(0, 5),
        "gates": st.sampled_from(GATES),
        "seed": st.integers(0, 2**32 - 1),
    }
    return st.builds(Problem, **{**drawn, **{name: st.just(x) for name, x in fixed.items()}})


class Draws:
    """Random tensors of a problem."""

    def __init__(self, problem: Problem) -> None:
        self._random = torch.Generator().manual_seed(problem.seed)
        self._problem = problem

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random, dtype=torch.float64)

    def tokens(self, width: int) -> Tensor:
        return self.normal(self._problem.batch, self._problem.length, self._problem.heads, width)

    def held(self, *shape: int) -> Tensor:
        return self.normal(self._problem.batch, self._problem.heads, *shape)

    def gates(self, width: int = 1) -> Tensor:
        sizes = (self._problem.batch, self._problem.length, self._problem.heads, width)
        draw = torch.rand(*sizes, generator=self._random, dtype=torch.float64)
        return gate(self._problem.gates, draw)


def titans(problem: Problem, names: tuple[str, ...] = ("S",)) -> Made:
    """Titans' rule; keys and queries of length 1, and θ as the configuration bounds it."""
    draw, height, width, count = Draws(problem), problem.height, problem.width, problem.count
    count %= problem.chunk
    # Two matrices explode where one does not: smaller steps, and less momentum.
    mlp = len(names) > 1
    most, surprised, least = (0.02, 0.02, 0.1) if mlp else (height / (2 * problem.chunk), 1.0, 0.0)
    tokens = {
        "keys": F.normalize(draw.tokens(width), dim=-1),
        "values": draw.tokens(height),
        "step": draw.gates() * most,
        "log_momentum": (draw.gates() * (1 - least)).log(),
        "log_keep": draw.gates().log(),
    }
    shapes = [(5, width), (height, 5)] if mlp else [(height, width)]
    state: Tensors = {COUNT: torch.full((problem.batch,), count)}
    for name, shape in zip(names, shapes, strict=True):
        memory = draw.held(*shape)
        state |= {name: memory, START + name: draw.held(*shape) if count else memory}
        state[MOMENTUM + name] = surprised * draw.held(*shape)

    def oracle(made: Made) -> Tensors:
        step, momentum, keep = (
            made.tokens[n][..., 0] for n in ("step", "log_momentum", "log_keep")
        )
        held = [{n: made.state[prefix + n] for n in names} for prefix in ("", MOMENTUM, START)]
        given = (made.queries, made.tokens["keys"], made.tokens["values"], step)
        reads, *after = naive.titans(
            *given, momentum.exp(), keep.exp(), *held, count, problem.chunk
        )
        return {"reads": reads, **_named(("", MOMENTUM, START), after)}

    rule = TitansRule(names, problem.chunk)
    queries = F.normalize(draw.tokens(width), dim=-1)
    return Made(lambda _: rule, queries, tokens, state, oracle, {})


def ttt(problem: Problem, names: tuple[str, ...] = ("",)) -> Made:
    """TTT's rule; keys and values are of the same width, at least 2 for a norm to have a meaning."""
    draw, width, chunk = Draws(problem), problem.width + 1, problem.chunk
    count = problem.count % chunk
    tokens = {
        "keys": draw.tokens(width),
        "values": draw.tokens(width),
        "step": draw.gates() / width,
    }
    shapes = [(5, width), (width, 5)] if len(names) > 1 else [(width, width)]
    state: Tensors = {COUNT: torch.full((problem.batch,), count)}
    tau = draw.normal(chunk).abs() / chunk
    for name, (rows, columns) in zip(names, shapes, strict=True):
        for letter, shape in (("W", (rows, columns)), ("b", (rows,))):
            held = draw.held(*shape)
            state |= {letter + name: held, GRADIENT + letter + name: held * 0}
            if count:
                state[GRADIENT + letter + name] = draw.held(*shape)
    state["rate"] = (tau[count - 1] if count else tau[0] * 0).expand(problem.batch).clone()
    state |= {"norm.scale": 1 + 0.3 * draw.held(width), "norm.shift": 0.3 * draw.held(width)}
    weights = [letter + name for letter in "Wb" for name in names]

    def oracle(made: Made) -> Tensors:
        tau = made.learned["tau"]
        held = [{n: made.state[prefix + n] for n in weights} for prefix in ("", GRADIENT)]
        norm = made.state["norm.scale"], made.state["norm.shift"]
        given = (made.queries, made.tokens["keys"], made.tokens["values"])
        step = made.tokens["step"][..., 0]
        reads, *after = naive.ttt(*given, step, tau, *held, *norm, count)
        last = (count + problem.length) % chunk
        rate = (tau[last - 1] if last else tau[0] * 0).expand(problem.batch)
        return {"reads": reads, "rate": rate, **_named(("", GRADIENT), after)}

    def rule(learned: Tensors) -> Rule:
        return TttRule(names, chunk, learned["tau"])

    return Made(rule, draw.tokens(width), tokens, state, oracle, {"tau": tau})


def lact_(problem: Problem, muon: bool = False, momentum: bool = True) -> Made:
    """LaCT's rule."""
    draw, width, height = Draws(problem), problem.width, problem.height
    count = problem.count % problem.chunk
    tokens = {
        "keys": F.normalize(draw.tokens(width), dim=-1),
        "values": draw.tokens(height),
        "rates": draw.gates(3),
        "momentum": draw.gates(),
    }
    names, state = lact.NAMES, {COUNT: torch.full((problem.batch,), count)}
    for name, shape in zip(names, ((5, width), (height, 5), (5, width)), strict=True):
        held = draw.held(*shape)
        state |= {name: held, lact.START + name: held, lact.STEP + name: draw.held(*shape)}
        state[lact.GRADIENT + name] = draw.held(*shape) if count else held * 0
        state[lact.LENGTH + name] = held.norm(dim=-1)
    state[lact.MOMENTUM] = draw.held().abs() * count
    prefixes = (lact.START, lact.STEP, lact.GRADIENT)

    def oracle(made: Made) -> Tensors:
        held = [{n: made.state[prefix + n] for n in names} for prefix in prefixes]
        given = (made.queries, made.tokens["keys"], made.tokens["values"], made.tokens["rates"])
        reads, *after, momenta = naive.lact(
            *given,
            made.tokens["momentum"][..., 0],
            *held,
            made.state[lact.MOMENTUM],
            {n: made.state[lact.LENGTH + n][..., None] for n in names},
            count,
            problem.chunk,
            lact.orthogonal if muon else lambda step: step,
        )
        found = {"reads": reads, **_named(("", *prefixes), after)}
        return {**found, lact.MOMENTUM: momenta}

    rule = LactRule(problem.chunk, muon)
    queries = F.normalize(draw.tokens(width), dim=-1)
    return Made(lambda _: rule, queries, tokens, state, oracle, {})


def lattice(problem: Problem) -> Made:
    """Lattice's rule; what a slot has moved by in its chunk is orthogonal to where it began."""
    draw, width, height = Draws(problem), problem.width, problem.height
    count = problem.count % problem.chunk
    tokens = {
        "keys": F.normalize(draw.tokens(width), dim=-1),
        "values": draw.tokens(height),
        "step": draw.gates() / problem.chunk,
    }
    first = F.normalize(draw.held(height, width), dim=-2)
    slots = F.normalize(first + 0.3 * draw.held(height, width), dim=-2) if count else first
    state: Tensors = {COUNT: torch.full((problem.batch,), count), "S": slots, START + "S": first}

    def oracle(made: Made) -> Tensors:
        step = made.tokens["step"][..., 0]
        given = (made.queries, made.tokens["keys"], made.tokens["values"], step)
        held = [{"S": made.state[prefix + "S"]} for prefix in ("", START)]
        reads, *after = naive.lattice(*given, *held, count, problem.chunk)
        return {"reads": reads, **_named(("", START), after)}

    rule = LatticeRule(problem.chunk)
    return Made(lambda _: rule, draw.tokens(width), tokens, state, oracle, {})


MECHANISMS: dict[str, Callable[[Problem], Made]] = {
    "titans": titans,
    "titans-mlp": lambda problem: titans(problem, ("W1", "W2")),
    "ttt-linear": ttt,
    "ttt-mlp": lambda problem: ttt(problem, ("1", "2")),
    "lact": lact_,
    "lattice": lattice,
    "lact-muon": lambda problem: lact_(problem, muon=True),
}


def made(problem: Problem) -> Made:
    """Make what the problem says, in float64."""
    return MECHANISMS[problem.mechanism](problem)


def _named(prefixes: tuple[str, ...], parts: list[Tensors]) -> Tensors:
    return {
        prefix + name: x
        for prefix, part in zip(prefixes, parts, strict=True)
        for name, x in part.items()
    }


def assert_same(found: Tensors, expected: Tensors, tolerance: float = 1e-11) -> None:
    """Fail unless all that is expected was found, to within the tolerance of the tensor's largest number."""
    for name, x in expected.items():
        size = max(1.0, x.abs().max().item()) if x.numel() else 1.0
        assert_close(
            found[name].to(x.dtype) / size,
            x / size,
            atol=tolerance,
            rtol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )
