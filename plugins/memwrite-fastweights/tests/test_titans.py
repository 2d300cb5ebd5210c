"""Titans' rule against its oracle, and what it is exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_delta import naive as delta
from memwrite_fastweights import naive
from memwrite_fastweights.chunks import COUNT, scan
from memwrite_fastweights.titans import MOMENTUM, START, TitansRule
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

GATES = ("moderate", "tiny", "near one", "extreme")
NAMES = {False: ("S",), True: ("W1", "W2")}
EXACT = {"atol": 1e-11, "rtol": 1e-11}


@dataclass(frozen=True)
class Problem:
    """Sizes of a scan, and a seed for what is in it."""

    batch: int = 2
    length: int = 11
    heads: int = 2
    width: int = 3
    height: int = 4
    chunk: int = 4
    count: int = 0
    mlp: bool = False
    gates: str = "moderate"
    seed: int = 0

    @property
    def rule(self) -> TitansRule:
        return TitansRule(NAMES[self.mlp], self.chunk)

    def made(
        self, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Queries, tokens and a state of this dtype, with keys and queries of length 1."""
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        sizes = (self.batch, self.length, self.heads)
        queries, keys = (F.normalize(normal(*sizes, self.width), dim=-1) for _ in range(2))
        step, momentum, keep = (
            gate(self.gates, torch.rand(*sizes, 1, generator=random).double()) for _ in range(3)
        )
        # Two matrices explode where one does not: smaller steps, and less momentum.
        most, surprised = (0.02, 0.02) if self.mlp else (self.height / (2 * self.chunk), 1.0)
        tokens = {
            "keys": keys,
            "values": normal(*sizes, self.height),
            "step": step * most,
            "log_momentum": (momentum * (0.9 if self.mlp else 1)).log(),
            "log_keep": keep.log(),
        }
        shapes = {"S": (self.height, self.width)}
        if self.mlp:
            shapes = {"W1": (5, self.width), "W2": (self.height, 5)}
        count = self.count % self.chunk
        state: dict[str, Tensor] = {COUNT: torch.full((self.batch,), count)}
        for name, shape in shapes.items():
            memory = normal(self.batch, self.heads, *shape)
            start = normal(self.batch, self.heads, *shape) if count else memory
            surprise = surprised * normal(self.batch, self.heads, *shape)
            state |= {name: memory, START + name: start, MOMENTUM + name: surprise}

        def cast(x: Tensor) -> Tensor:
            return x.to(dtype) if x.is_floating_point() else x

        return (
            cast(queries),
            {n: cast(x) for n, x in tokens.items()},
            {n: cast(x) for n, x in state.items()},
        )


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
    two, small = st.integers(1, 2), st.integers(1, 5)
    drawn = {
        "batch": two,
        "length": st.sampled_from([1, 2, 3, 4, 5, 9, 18]),
        "heads": two,
        "width": small,
        "height": small,
        "chunk": st.integers(1, 6),
        "count": st.integers(0, 5),
        "mlp": st.booleans(),
        "gates": st.sampled_from(GATES),
        "seed": st.integers(0, 2**32 - 1),
    }
    return st.builds(Problem, **{**drawn, **{name: st.just(x) for name, x in fixed.items()}})


def oracle(
    problem: Problem, queries: Tensor, tokens: dict[str, Tensor], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    names = NAMES[problem.mlp]
    reads, memory, surprise, start = naive.titans(
        queries,
        tokens["keys"],
        tokens["values"],
        tokens["step"][..., 0],
        tokens["log_momentum"][..., 0].exp(),
        tokens["log_keep"][..., 0].exp(),
        {n: state[n] for n in names},
        {n: state[MOMENTUM + n] for n in names},
        {n: state[START + n] for n in names},
        problem.count % problem.chunk,
        problem.chunk,
    )
    found = {"reads": reads, **memory}
    found |= {MOMENTUM + n: x for n, x in surprise.items()}
    return found | {START + n: x for n, x in start.items()}


def fast(
    problem: Problem, queries: Tensor, tokens: dict[str, Tensor], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    reads, after = scan(problem.rule, tokens, queries, state)
    assert reads is not None
    return {"reads": reads, **after}


def differentiated(run: Any, problem: Problem) -> dict[str, Tensor]:
    """Results, and the gradients of a mix of all of them."""
    queries, tokens, state = problem.made()
    leaves = {"queries": queries, **tokens, **{n: x for n, x in state.items() if n != COUNT}}
    for x in leaves.values():
        x.requires_grad_()
    found = run(problem, queries, tokens, state)
    random = torch.Generator().manual_seed(0)
    mixed = sum(
        (x * torch.randn(x.shape, generator=random, dtype=x.dtype)).sum()
        for n, x in sorted(found.items())
        if n != COUNT
    )
    grads = torch.autograd.grad(mixed, list(leaves.values()), materialize_grads=True)
    return {**found, **{f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}}


@given(problems())
def test_equals_the_oracle(problem: Problem) -> None:
    found, expected = differentiated(fast, problem), differentiated(oracle, problem)
    for name, x in expected.items():
        size = max(1.0, x.abs().max().item())
        assert_close(found[name] / size, x / size, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    assert (found[COUNT] == (problem.count % problem.chunk + problem.length) % problem.chunk).all()


@given(problems(), st.integers(0, 18))
def test_two_scans_make_one(problem: Problem, cut: int) -> None:
    queries, tokens, state = problem.made()
    cut = min(cut, problem.length)
    whole = fast(problem, queries, tokens, state)
    parts = []
    for piece in (slice(0, cut), slice(cut, None)):
        if queries[:, piece].shape[1]:
            reads, state = scan(
                problem.rule, {n: x[:, piece] for n, x in tokens.items()}, queries[:, piece], state
            )
            parts.append(reads)
    found = {"reads": torch.cat(parts, 1), **state}
    for name, x in whole.items():
        size = max(1.0, x.abs().max().item())
        assert_close(found[name] / size, x / size, **EXACT)


@given(problems(batch=2), st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_rows_of_different_lengths(problem: Problem, lengths: list[int]) -> None:
    """Padding and neighbours change nothing, wherever a row's chunk broke off."""
    queries, tokens, state = problem.made()
    lengths = [min(n, problem.length) for n in lengths]
    state[COUNT] = torch.tensor([problem.count % problem.chunk, 0])
    mask = torch.arange(problem.length)[None] < torch.tensor(lengths)[:, None]
    reads, found = scan(problem.rule, tokens, queries, state, mask)
    assert reads is not None
    for row, length in enumerate(lengths):
        at = slice(row, row + 1)
        own = {n: x[at] for n, x in state.items()}
        if length:
            alone, own = scan(
                problem.rule,
                {n: x[at, :length] for n, x in tokens.items()},
                queries[at, :length],
                own,
            )
            assert_close(reads[at, :length], alone, **EXACT)
        for name, x in own.items():
            assert_close(found[name][at], x, **EXACT)


@given(problems(mlp=False, chunk=1))
def test_the_delta_rule(problem: Problem) -> None:
    """One matrix, no momentum, chunks of one: β = 2θ/Dv, λ = 1 − α."""
    queries, tokens, state = problem.made()
    tokens["log_momentum"] = torch.full_like(tokens["log_keep"], -torch.inf)
    beta = 2 * tokens["step"] / problem.height
    expected = delta.scan(
        queries, tokens["keys"], tokens["values"], tokens["log_keep"], beta, beta, state["S"]
    )
    reads, after = scan(problem.rule, tokens, queries, state)
    assert_close((reads, after["S"]), expected, **EXACT)
    del tokens["log_momentum"]
    bare = scan(problem.rule, tokens, queries, {"S": state["S"]})
    assert_close((bare[0], bare[1]["S"]), expected, **EXACT)


@given(problems(mlp=False, count=0))
def test_linear_attention(problem: Problem) -> None:
    """From zero, in one chunk, with θ = Dv/2, nothing forgotten and no momentum: Σ v_j (k_j · q)."""
    problem = replace(problem, chunk=problem.length)
    queries, tokens, state = problem.made()
    state = {n: torch.zeros_like(x) for n, x in state.items()}
    tokens |= {
        "step": torch.full_like(tokens["step"], problem.height / 2),
        "log_momentum": torch.full_like(tokens["step"], -torch.inf),
        "log_keep": torch.zeros_like(tokens["step"]),
    }
    reads, after = scan(problem.rule, tokens, queries, state)
    scores = torch.einsum("bthk,bjhk->bhtj", queries, tokens["keys"]).tril(-1)
    assert_close(reads, torch.einsum("bhtj,bjhv->bthv", scores, tokens["values"]), **EXACT)
    written = torch.einsum("bthv,bthk->bhvk", tokens["values"], tokens["keys"])
    assert_close(after["S"], written, **EXACT)


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("gates", GATES)
def test_float32_stays_close_to_the_oracle(gates: str, mlp: bool) -> None:
    problem = Problem(1, 1500, 1, 6, 8, chunk=16, count=5, mlp=mlp, gates=gates)
    queries, tokens, state = problem.made(torch.float32)
    wide = [
        {n: x.double() if x.is_floating_point() else x for n, x in part.items()}
        for part in (tokens, state)
    ]
    expected = oracle(problem, queries.double(), *wide)
    found = fast(problem, queries, tokens, state)
    for name, x in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - x).abs().max() <= 2e-5 * max(1.0, x.abs().max().item()), name
