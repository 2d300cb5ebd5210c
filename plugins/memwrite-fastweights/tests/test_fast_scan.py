"""The scans of all rules against their oracles, however texts are cut and padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fast_problems import GATES, MECHANISMS, Made, Problem, Tensors, assert_same, made, problems
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_fastweights.chunks import COUNT, scan
from torch import Tensor

each = pytest.mark.parametrize("mechanism", MECHANISMS)


def differentiated(run: Callable[[Made], Tensors], problem: Made) -> Tensors:
    """Results, and the gradients of a mix of all of them."""
    problem = problem.map(lambda x: x.detach().clone().requires_grad_())
    found = run(problem)
    random = torch.Generator().manual_seed(0)
    mixed = sum(
        (x * torch.randn(x.shape, generator=random, dtype=x.dtype)).sum()
        for _, x in sorted(found.items())
    )
    leaves = problem.leaves
    grads = torch.autograd.grad(mixed, list(leaves.values()), materialize_grads=True)
    return {**found, **{f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}}


@each
@settings(max_examples=30)
@given(st.data())
def test_equals_the_oracle(mechanism: str, data: st.DataObject) -> None:
    problem = data.draw(problems(mechanism=mechanism))
    case = made(problem)
    expected = differentiated(case.oracle, case)
    names = [name for name in expected if "gradient of" not in name]
    found = differentiated(lambda m: {n: m.scanned()[n] for n in names}, case)
    assert_same(found, expected, 1e-10)
    count = (problem.count % problem.chunk + problem.length) % problem.chunk
    assert (case.scanned()[COUNT] == count).all()


def piece(case: Made, part: slice, state: Tensors) -> tuple[Tensor, Tensors]:
    """Scan a part of the tokens."""
    queries, tokens = case.queries[:, part], {n: x[:, part] for n, x in case.tokens.items()}
    if not queries.shape[1]:
        return case.scanned()["reads"][:, :0], state
    reads, after = scan(case.rule(case.learned), tokens, queries, state)
    assert reads is not None
    return reads, dict(after)


@given(problems(), st.integers(0, 18))
def test_two_scans_make_one(problem: Problem, cut: int) -> None:
    case = made(problem)
    first, state = piece(case, slice(0, cut), case.state)
    second, state = piece(case, slice(cut, None), state)
    expected = case.scanned()
    assert_same({"reads": torch.cat([first, second], 1), **state}, expected)


@given(problems())
def test_a_token_at_a_time(problem: Problem) -> None:
    """As text is generated."""
    case, state, reads = made(problem), made(problem).state, []
    for t in range(problem.length):
        read, state = piece(case, slice(t, t + 1), state)
        reads.append(read)
    assert_same({"reads": torch.cat(reads, 1), **state}, case.scanned())


@given(problems(batch=2), st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_rows_of_different_lengths(problem: Problem, lengths: list[int]) -> None:
    """Padding and neighbours change nothing, wherever a row's chunk broke off."""
    case, fresh = made(problem), made(replace(problem, count=0))
    rows = (case.state, fresh.state)
    state = {n: torch.stack([row[n][i] for i, row in enumerate(rows)]) for n in case.state}
    lengths = [min(n, problem.length) for n in lengths]
    mask = torch.arange(problem.length)[None] < torch.tensor(lengths)[:, None]
    rule = case.rule(case.learned)
    reads, found = scan(rule, case.tokens, case.queries, state, mask)
    assert reads is not None
    for row, length in enumerate(lengths):
        at = slice(row, row + 1)
        own = {n: x[at] for n, x in state.items()}
        if length:
            tokens = {n: x[at, :length] for n, x in case.tokens.items()}
            alone, own = scan(rule, tokens, case.queries[at, :length], own)
            assert_same({"reads": reads[at, :length]}, {"reads": alone})
        assert_same({n: found[n][at] for n in own}, own)


@given(problems(length=9), st.integers(0, 8))
def test_reads_know_only_earlier_tokens(problem: Problem, now: int) -> None:
    case, other = made(problem), made(replace(problem, seed=problem.seed + 1))
    tokens = {
        n: torch.cat([x[:, :now], other.tokens[n][:, now:]], 1) for n, x in case.tokens.items()
    }
    changed = replace(case, tokens=tokens).scanned()["reads"][:, : now + 1]
    assert_same({"reads": changed}, {"reads": case.scanned()["reads"][:, : now + 1]})


@each
@pytest.mark.parametrize("gates", GATES)
def test_float32_stays_close_to_the_oracle(mechanism: str, gates: str) -> None:
    """As close as the loop does in float32, but for chance: some rules magnify every rounding."""
    case = made(Problem(mechanism, 1, 400, 1, 6, 8, chunk=16, count=5, gates=gates))
    case = case.map(lambda x: x.float())
    with torch.no_grad():
        exact, loop, found = case.map(lambda x: x.double()), case.oracle(case), case.scanned()
        expected = exact.oracle(exact)
    chance = 8 if mechanism == "lact-muon" else 4  # orthogonal steps magnify them most
    for name, x in expected.items():
        assert found[name].dtype == torch.float32
        error, unavoidable = (found[name] - x).abs().max(), (loop[name] - x).abs().max()
        assert error <= chance * unavoidable + 2e-6 * x.abs().max().clamp(min=1), name
