"""What the delta rule does, exactly, and under which conditions; every law on the scan, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_delta.scan import scan
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

EXACT = {"atol": 1e-12, "rtol": 1e-12}


@dataclass
class Drawn:
    """Inputs of a scan, normal unless said otherwise; `shared` gates are one for all rows of a state."""

    batch: int
    length: int
    heads: int
    rows: int
    width: int
    shared: bool
    seed: int

    def __post_init__(self) -> None:
        self._random = torch.Generator().manual_seed(self.seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random, dtype=torch.float64)

    def tokens(self, width: int) -> Tensor:
        return self.normal(self.batch, self.length, self.heads, width)

    def keys(self) -> Tensor:
        """Of length 1."""
        return F.normalize(self.tokens(self.width), dim=-1)

    def values(self) -> Tensor:
        return self.tokens(self.rows)

    def gates(self) -> Tensor:
        """From 0 to 1."""
        return self.tokens(1 if self.shared else self.rows).sigmoid()

    def state(self) -> Tensor:
        return self.normal(self.batch, self.heads, self.rows, self.width)

    def orthonormal(self) -> Tensor:
        """Keys that form a part of an orthonormal basis, (B, T, H, Dk); T at most Dk."""
        square = self.normal(self.batch, self.heads, self.width, self.width)
        return torch.linalg.qr(square).Q[..., : self.length, :].transpose(1, 2)


Gates = tuple[Tensor, Tensor, Tensor]
RULES: dict[str, Callable[[Tensor, Tensor], Gates]] = {  # of β and a λ of its own
    "none": lambda beta, keep: (torch.zeros_like(beta), beta, beta),
    "coupled": lambda beta, keep: ((-beta).log1p(), beta, beta),
    "coupled, λ outside": lambda beta, keep: ((-beta).log1p(), (1 - beta) * beta, beta),
    "free": lambda beta, keep: (keep.log(), beta, beta),
    "free, λ outside": lambda beta, keep: (keep.log(), keep * beta, beta),
    "nothing erased": lambda beta, keep: (keep.log(), torch.zeros_like(beta), beta),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))


def drawn(length: int | None = None, width: int = 5) -> st.SearchStrategy[Drawn]:
    """Of shapes up to 2 rows, 9 tokens and 2 heads of 4 × `width`."""
    lengths = st.integers(0, 9) if length is None else st.just(length)
    two, seed = st.integers(1, 2), st.integers(0, 999)
    rows, widths = st.integers(1, 4), st.integers(1, width)
    return st.builds(Drawn, two, lengths, two, rows, widths, st.booleans(), seed)


def recall(state: Tensor, keys: Tensor) -> Tensor:
    """S k for all keys (B, T, H, Dk) of one state (B, H, Dv, Dk)."""
    return torch.einsum("bhvk,bthk->bthv", state, keys)


@given(drawn(length=1))
def test_overwrite(case: Drawn) -> None:
    """Without forgetting, ‖k‖ = 1: S⁺k = (1 − β)Sk + βv, which is v at β = 1; and S⁺x = Sx for x ⊥ k, at any β."""
    key, value, beta, state = case.keys(), case.values(), case.gates(), case.state()
    across = case.keys()
    across = across - (across * key).sum(-1, keepdim=True) * key
    for strength in (beta, torch.ones_like(beta)):
        _, after = scan(None, key, value, torch.zeros_like(beta), strength, strength, state)
        kept = (1 - strength) * recall(state, key)
        assert_close(recall(after, key), kept + strength * value, **EXACT)
        assert_close(recall(after, across), recall(state, across), **EXACT)


@given(drawn(), st.data())
def test_orthonormal_recall(case: Drawn, data: st.DataObject) -> None:
    """λ = 1, β = 1, orthonormal keys, so no more than Dk: S = S_0 (I − KᵀK) + VᵀK. From zero, all are recalled, and
    what is orthogonal to them reads 0."""
    case.length = data.draw(st.integers(0, case.width))
    keys, values, state = case.orthonormal(), case.values(), case.state()
    one = torch.ones(case.batch, case.length, case.heads, 1, dtype=torch.float64)
    for start in (state, torch.zeros_like(state)):
        _, after = scan(None, keys, values, one * 0, one, one, start)
        outside = start - torch.einsum("bthv,bthk->bhvk", recall(start, keys), keys)
        assert_close(after, outside + torch.einsum("bthv,bthk->bhvk", values, keys), **EXACT)
        assert_close(recall(after, keys), values, **EXACT)


@each_rule
@given(drawn(length=1), st.floats(0, 3))
def test_contraction(rule: Callable[..., Gates], case: Drawn, length: float) -> None:
    """One step's linear part A = λI − e k kᵀ, of a row with its own λ and e, has ‖A‖₂ = max(|λ|, |λ − e‖k‖²|) for
    Dk ≥ 2, and |λ − e‖k‖²| for Dk = 1. Keys of any length."""
    case.batch = 1
    key, (log_keep, erase, write) = case.keys() * length, rule(case.gates(), case.gates())
    values = case.values() * 0
    tokens = (x.expand(case.width, -1, -1, -1) for x in (key, values, log_keep, erase, write))
    basis = torch.eye(case.width, dtype=torch.float64)[:, None, None]  # a vector for each batch row
    _, after = scan(None, *tokens, basis.expand(-1, case.heads, case.rows, -1))
    found = torch.linalg.matrix_norm(after.permute(1, 2, 0, 3), 2)
    keep, erased = log_keep[0, 0].exp(), erase[0, 0]
    along = (keep - erased * length**2).abs()
    expected = torch.maximum(keep, along) if case.width > 1 else along
    assert_close(found, expected.expand_as(found), **EXACT)


@each_rule
@given(drawn(), st.lists(st.integers(0, 9), max_size=3))
def test_chunks(rule: Callable[..., Gates], case: Drawn, cuts: list[int]) -> None:
    """T tokens at once, or in pieces of any lengths, 0 too, each from the state that the last one left."""
    tokens = (case.keys(), case.keys(), case.values(), *rule(case.gates(), case.gates()))
    state = case.state()
    reads, after = scan(*tokens, state)
    edges = [0, *sorted(min(cut, case.length) for cut in cuts), case.length]
    parts = []
    for start, stop in itertools.pairwise(edges):
        part, state = scan(*(x[:, start:stop] for x in tokens), state)
        parts.append(part)
    assert_close(torch.cat(parts, 1), reads, **EXACT)
    assert_close(state, after, **EXACT)


@each_rule
@given(drawn(length=7), st.integers(0, 6))
def test_causality(rule: Callable[..., Gates], case: Drawn, now: int) -> None:
    """What is read at t depends on the query at t and on what was written before t, and on nothing else."""
    queries = case.keys()
    writes = (case.keys(), case.values(), *rule(case.gates(), case.gates()))
    others = (case.keys() * 7, case.values() * 7, *rule(case.gates(), case.gates()))
    state = case.state()
    reads, _ = scan(queries, *writes, state)
    mixed = (torch.cat([x[:, :now], y[:, now:]], 1) for x, y in zip(writes, others, strict=True))
    asked = case.keys()
    asked[:, now] = queries[:, now]
    found, _ = scan(asked, *mixed, state)
    assert_close(found[:, now], reads[:, now], **EXACT)
    first, _ = scan(queries[:, :1], *(x[:, :1] for x in writes), state)
    assert_close(first, recall(state, queries[:, :1]), **EXACT)


@each_rule
@given(drawn())
def test_rank(rule: Callable[..., Gates], case: Drawn) -> None:
    """From zero, rank S ≤ min(T, Dk, Dv): every row is a combination of the keys, whatever gates it has of its own."""
    gates = rule(case.gates(), case.gates())
    _, after = scan(None, case.keys(), case.values(), *gates, case.state() * 0)
    sizes = torch.linalg.svdvals(after)
    assert (sizes[..., case.length :] <= 1e-12 * sizes[..., :1]).all()


@each_rule
@given(drawn())
def test_linearity(rule: Callable[..., Gates], case: Drawn) -> None:
    """Reads and state are linear in (S_0, values) together: what a state held and what is written only add up."""
    queries, keys, gates = case.keys(), case.keys(), rule(case.gates(), case.gates())
    state, values = case.state(), case.values()
    held = scan(queries, keys, values * 0, *gates, state)
    written = scan(queries, keys, values, *gates, state * 0)
    both = scan(queries, keys, values * 3, *gates, state * -2)
    for whole, first, second in zip(both, held, written, strict=True):
        assert_close(whole, 3 * second - 2 * first, **EXACT)


@given(drawn(width=6), st.integers(1, 40), st.data())
def test_kaczmarz_rate(case: Drawn, passes: int, data: st.DataObject) -> None:
    """λ = 1, β = 1, independent unit keys K, written over and over: from one pass to the next the distance to
    S* = S_0 + (V − S_0 K)K⁺ shrinks by √(1 − det KᵀK) at least (Meany's bound for Kaczmarz's method)."""
    case.length = data.draw(st.integers(1, case.width))
    keys, values, state = case.keys(), case.values(), case.state()
    goal = nearest_solution(keys, values, state)
    one = torch.ones(case.batch, case.length * passes, case.heads, 1, dtype=torch.float64)
    again = (x.repeat(1, passes, 1, 1) for x in (keys, values))
    _, after = scan(None, *again, one * 0, one, one, state)
    matrix = keys.transpose(1, 2)
    rate = (1 - torch.linalg.det(matrix @ matrix.mT)).clamp(min=0)[..., None]
    before = (state - goal).norm(dim=-1)
    bound = rate ** (passes / 2) * before + 1e-9 * goal.norm(dim=-1)
    assert ((after - goal).norm(dim=-1) <= bound).all()


@given(drawn(width=6), st.data())
def test_kaczmarz_limit(case: Drawn, data: st.DataObject) -> None:
    """λ = 1, 0 < β < 2 with gates of their own for every row and key, independent keys: many passes end at the
    solution of S k_t = v_t that is nearest to S_0; from zero, the one of least norm, V K⁺."""
    case.length = data.draw(st.integers(1, case.width))
    keys = F.normalize(case.orthonormal() + 0.2 * case.keys(), dim=-1)
    values, state, beta = case.values(), case.state(), 0.4 + 0.6 * case.gates()
    again = [x.repeat(1, 400, 1, 1) for x in (keys, values, beta)]
    for start in (state, torch.zeros_like(state)):
        _, after = scan(None, *again[:2], again[2] * 0, again[2], again[2], start)
        goal = nearest_solution(keys, values, start)
        assert_close(recall(goal, keys), values, atol=1e-9, rtol=1e-9)
        assert_close(after, goal, atol=1e-8, rtol=1e-8)


def nearest_solution(keys: Tensor, values: Tensor, state: Tensor) -> Tensor:
    missing = (values - recall(state, keys)).permute(0, 2, 3, 1)
    return state + missing @ torch.linalg.pinv(keys.transpose(1, 2).mT)


@each_rule
@given(drawn(length=1))
def test_fixed_point(rule: Callable[..., Gates], case: Drawn) -> None:
    """One (k, v) for ever, ‖k‖ = 1: S* = w v kᵀ / (1 − λ + e) stays as it is, and where |λ| < 1 and |λ − e| < 1 every
    start ends there. At λ = 1 so does S_0 (I − k kᵀ) + S*, from S_0."""
    key, value, state = case.keys(), case.values(), case.state()
    log_keep, erase, write = rule(0.1 + 0.8 * case.gates(), 0.1 + 0.8 * case.gates())
    keep = log_keep.exp()
    size = write / (1 - keep + erase)
    fixed = torch.einsum("bthv,bthk->bhvk", size * value, key)
    gates = (log_keep, erase, write)
    assert_close(scan(None, key, value, *gates, fixed)[1], fixed, **EXACT)
    for_ever = (x.repeat(1, 300, 1, 1) for x in (key, value, *gates))
    _, after = scan(None, *for_ever, state)
    kept = state - torch.einsum("bthv,bthk->bhvk", recall(state, key), key)
    kept = torch.where((keep == 1).transpose(1, 2).mT, kept, 0)
    assert_close(after, kept + fixed, atol=1e-9, rtol=1e-9)


@given(st.floats(0.01, 1))
def test_what_one_association_becomes(beta: float) -> None:
    """The fixed point S*k of one (k, v) for ever: v without forgetting, v/2 with coupled gates, whatever β is, and
    v/(2 − β) with λ outside."""
    shares = {"none": 1, "coupled": 1 / 2, "coupled, λ outside": 1 / (2 - beta)}
    for name, share in shares.items():
        gate = torch.full((1, 1, 1, 1), beta, dtype=torch.float64)
        key = value = torch.ones_like(gate)
        _, after = scan(None, key, value, *RULES[name](gate, gate), value * share)
        assert_close(after, value * share, **EXACT)


@each_rule
@given(drawn())
def test_symmetries(rule: Callable[..., Gates], case: Drawn) -> None:
    """Keys and queries rotated together, with S_0, leave the reads, the change of sign included; values of other sign,
    with S_0, give reads of other sign. The state turns along."""
    queries, keys, values = case.keys(), case.keys(), case.values()
    gates, state = rule(case.gates(), case.gates()), case.state()
    reads, after = scan(queries, keys, values, *gates, state)
    turn = torch.linalg.qr(case.normal(case.width, case.width)).Q
    for turned in (turn, -torch.eye(case.width, dtype=torch.float64)):
        found = scan(queries @ turned, keys @ turned, values, *gates, state @ turned)
        assert_close(found, (reads, after @ turned), **EXACT)
    assert_close(scan(queries, keys, -values, *gates, -state), (-reads, -after), **EXACT)


@given(drawn(width=3), st.integers(0, 3))
def test_interference(case: Drawn, writes: int) -> None:
    """Without forgetting, β of each row constant, keys drawn evenly from an orthonormal basis, independent values of
    mean 0: E[S_n] = Diag(1 − β/Dk)ⁿ S_0. Exact, as the mean over all Dkⁿ sequences of keys."""
    case.batch, case.length = 1, case.width
    basis, state = case.orthonormal()[0], case.state()
    beta = case.gates()[:, :1]
    choices = list(itertools.product(range(case.width), repeat=writes))
    keys = torch.stack([basis[list(choice)] for choice in choices])
    gate = beta.expand(len(choices), writes, -1, -1)
    values = gate.new_zeros(*gate.shape[:3], case.rows)
    start = state.expand(len(choices), -1, -1, -1)
    _, after = scan(None, keys, values, gate * 0, gate, gate, start)
    left = (1 - beta[0, 0] / case.width) ** writes
    assert_close(after.mean(0), left[..., None] * state[0], **EXACT)


def test_coupled_gates_are_not_stable() -> None:
    """β ≡ 1, one key, values v, −v, v, …: S_T k = (−1)ᵀ⁻¹ T v with coupled gates, as large as one likes. With λ outside
    nothing but the last value is there."""
    signs = torch.tensor([(-1.0) ** t for t in range(1000)], dtype=torch.float64)
    values = signs[None, :, None, None]
    one, key = torch.ones_like(values), torch.ones_like(values)
    reads, after = scan(key, key, values, *RULES["coupled"](one, one), one[:, :1] * 0)
    assert torch.equal(reads[0, :, 0, 0], torch.arange(1000) * -signs)
    assert after.item() == -1000
    reads, after = scan(key, key, values, *RULES["coupled, λ outside"](one, one), one[:, :1] * 0)
    assert torch.equal(reads[0, 1:], values[0, :-1])
    assert after.item() == -1
