"""What the rules are exactly, under which conditions."""

from __future__ import annotations

from dataclasses import replace

import torch
from fast_problems import EXACT, Problem, made, problems
from hypothesis import given
from memwrite_delta import naive as delta
from memwrite_fastweights.chunks import COUNT, scan
from memwrite_fastweights.kinds import EPS
from memwrite_fastweights.titans import START
from torch import Tensor
from torch.testing import assert_close


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return Σ v_j (k_j · q_t) over the tokens j before t: linear attention without a normalizer."""
    scores = torch.einsum("bthk,bjhk->bhtj", queries, keys).tril(-1)
    return torch.einsum("bhtj,bjhv->bthv", scores, values)


@given(problems(mechanism="titans", chunk=1))
def test_titans_as_the_delta_rule(problem: Problem) -> None:
    """One matrix, no momentum, chunks of one: β = 2θ/Dv, λ = 1 − α."""
    case = made(problem)
    tokens = {**case.tokens, "log_momentum": torch.full_like(case.tokens["step"], -torch.inf)}
    beta = 2 * tokens["step"] / problem.height
    writes = tokens["keys"], tokens["values"], tokens["log_keep"], beta, beta
    expected = delta.scan(case.queries, *writes, case.state["S"])
    found = replace(case, tokens=tokens).scanned()
    assert_close((found["reads"], found["S"]), expected, **EXACT)
    del tokens["log_momentum"]
    reads, after = scan(case.rule({}), tokens, case.queries, {"S": case.state["S"]})
    assert_close((reads, after["S"]), expected, **EXACT)


@given(problems(mechanism="titans", count=0))
def test_titans_as_linear_attention(problem: Problem) -> None:
    """From zero, in one chunk, θ = Dv/2, nothing forgotten, no momentum: Σ v_j (k_j · q)."""
    case = made(replace(problem, chunk=problem.length))
    step = case.tokens["step"]
    gates = {
        "step": torch.full_like(step, problem.height / 2),
        "log_momentum": torch.full_like(step, -torch.inf),
        "log_keep": torch.zeros_like(step),
    }
    state = {n: torch.zeros_like(x) for n, x in case.state.items()}
    found = replace(case, tokens={**case.tokens, **gates}, state=state).scanned()
    keys, values = case.tokens["keys"], case.tokens["values"]
    assert_close(found["reads"], attention(case.queries, keys, values), **EXACT)
    assert_close(found["S"], torch.einsum("bthv,bthk->bhvk", values, keys), **EXACT)


@given(problems(mechanism="ttt-linear", count=0))
def test_ttt_as_linear_attention(problem: Problem) -> None:
    """From zero, within the first mini-batch, what goes through the norm is linear attention to what the norm lets through
    of the targets, θ times γ (v − k − β) less its mean, by k and by the constant 1 of the bias; a read adds its norm to q.
    """
    case = made(replace(problem, chunk=problem.length + 1))
    keys, tau = case.tokens["keys"], case.learned["tau"]
    zeros = {n: torch.zeros_like(x) for n, x in case.state.items() if not n.startswith("norm")}
    scale, shift = (case.state["norm." + n][:, None] for n in ("scale", "shift"))
    found = replace(case, state={**case.state, **zeros}).scanned()
    target = scale * (case.tokens["values"] - keys - shift)
    target = case.tokens["step"] * (target - target.mean(-1, keepdim=True)) / EPS**0.5
    one = torch.ones_like(keys[..., :1])
    queries, keys = (torch.cat([x, one], -1) for x in (case.queries, keys))
    rate = torch.cat([tau[:1] * 0, tau[: problem.length - 1]])[:, None, None]
    seen = rate * attention(queries, keys, target)
    normed = torch.nn.functional.layer_norm(seen, seen.shape[-1:], eps=EPS)
    assert_close(found["reads"], case.queries + normed * scale + shift, atol=1e-9, rtol=1e-9)
    assert (found[COUNT] == problem.length).all()


@given(problems(mechanism="lact"))
def test_lact_keeps_the_lengths_of_rows(problem: Problem) -> None:
    case = made(problem)
    found = case.scanned()
    for name in ("W0", "W1", "W2"):
        length = found[name].norm(dim=-1)
        assert_close(length, case.state["latent.length." + name], atol=1e-3, rtol=1e-3)


@given(problems(mechanism="lattice"))
def test_the_slots_of_a_lattice_stay_of_length_one(problem: Problem) -> None:
    found = made(problem).scanned()
    for name in ("S", START + "S"):
        length = found[name].norm(dim=-2)
        assert_close(length, torch.ones_like(length), **EXACT)


@given(problems(mechanism="lattice", chunk=1, length=1))
def test_a_slot_of_a_lattice_turns_towards_what_is_orthogonal_to_it(problem: Problem) -> None:
    """By what its key says of the error that all slots leave, and in no way by what lies along it."""
    case = made(problem)
    slots, keys = case.state["S"], case.tokens["keys"][:, 0]
    error = case.tokens["values"][:, 0] - torch.einsum("bhvk,bhk->bhv", slots, keys)
    across = error[..., None] - slots * torch.einsum("bhvk,bhv->bhk", slots, error)[:, :, None]
    moved = slots + case.tokens["step"][:, 0, :, :, None] * keys[:, :, None] * across
    assert_close(case.scanned()["S"], moved / moved.norm(dim=-2, keepdim=True), **EXACT)
    alone = {n: x[..., :1] if n == "S" else x for n, x in case.state.items()}
    along = torch.einsum("bhvk,bhk->bhv", alone["S"], torch.full_like(keys[..., :1], 3.0))
    tokens = {
        **case.tokens,
        "keys": torch.ones_like(case.tokens["keys"][..., :1]),
        "values": along[:, None],
    }
    _, after = scan(case.rule({}), tokens, None, {"S": alone["S"]})
    assert_close(after["S"], alone["S"], **EXACT)
