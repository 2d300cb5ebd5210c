"""How large contexts can make a state: what is proven holds under every attack, and is reached by one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_delta import DeltaConfig, GatedDeltaConfig, HebbianConfig, chunked
from memwrite_delta.cells import Cell, DeltaCell, GatedDeltaCell, HebbianCell, Writes
from memwrite_delta.config import FORGETTING, GATES, UPDATES
from memwrite_delta.scan import scan, scan_with
from torch import Tensor, nn
from torch.testing import assert_close

SIZES: dict[str, Any] = {"rank": 3, "value_width": 2}
CELLS = {DeltaConfig: DeltaCell, HebbianConfig: HebbianCell, GatedDeltaConfig: GatedDeltaCell}
OPEN = 800.0  # a score whose sigmoid is 1, and that of its negative 0, also in float64
WRITES = 48

SETTINGS: dict[str, Any] = {
    f"{gates} {forgetting} {update}{f' {keep}' if keep < 1 else ''}": DeltaConfig(
        **SIZES, gates=gates, forgetting=forgetting, update=update, most_keep=keep
    )
    for gates, forgetting, update, keep in itertools.product(GATES, FORGETTING, UPDATES, (1.0, 0.9))
    if keep == 1 or forgetting == "free"
}
SETTINGS |= {f"hebbian {keep}": HebbianConfig(**SIZES, keep=keep) for keep in (1.0, 0.9)}
SETTINGS["gated"] = GatedDeltaConfig(**SIZES)
each = pytest.mark.parametrize("config", SETTINGS.values(), ids=list(SETTINGS))
DELTA = {name: config for name, config in SETTINGS.items() if isinstance(config, DeltaConfig)}
each_delta = pytest.mark.parametrize("config", DELTA.values(), ids=list(DELTA))


def ceiling(config: Any, writes: float) -> float:
    """The largest norm of a row after so many writes from zero of values up to 1, with keys of length up to 1.

    With a the part of a row s along k and p the rest, a write makes them (λ − e)a + wv and λp: always
    ‖s'‖ ≤ max(λ, |λ − e|)‖s‖ + w|v|. Where nothing is erased that is λ‖s‖ + η|v|; with the standard update, ‖s‖ + |v| at
    most; where λ = 1 − β stands outside, (1 − β)‖s‖ + β|v|, which is never beyond |v|.
    Else e = λβ and w = β: by convexity ((1 − β)λa + βv)² ≤ (1 − β)(λa)² + βv², so that ‖s'‖² ≤ λ²‖s‖² + v².
    """
    if isinstance(config, HebbianConfig):
        return config.learning_rate * _geometric(config.keep, writes)
    if isinstance(config, GatedDeltaConfig) or config.forgetting == "none":
        return math.sqrt(writes)
    if config.update == "standard":
        return writes
    return 1 if config.forgetting == "coupled" else _geometric(config.most_keep**2, writes) ** 0.5


def _geometric(ratio: float, terms: float) -> float:
    return terms if ratio == 1 else (1 - ratio**terms) / (1 - ratio)


def opened(config: Any) -> Cell:
    """A cell whose every number an attacker sets: hidden states are key, value and scores for β and λ."""
    cell: Cell = CELLS[type(config)](config, 20, torch.float64)
    start = 0
    for name, layer in cell.named_children():
        assert isinstance(layer, nn.Linear)
        stop = start + layer.out_features
        nn.init.zeros_(layer.weight)
        layer.weight.data[:, start:stop] = torch.eye(stop - start) * (-1 if name == "alpha" else 1)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        start = stop
    return cell


def hidden(config: Any, keys: Tensor, values: Tensor, beta: Tensor, keep: Tensor) -> Tensor:
    """What an open cell reads, (B, T, 20), for keys (B, T, 3), values (B, T, 2) and scores (B, T, 1 or 2)."""
    gates = 2 if isinstance(config, DeltaConfig) and config.gates == "row" else 1
    # Small, keys pass through tanh and silu without turning.
    parts = [1e-3 * keys, values, beta[..., :gates], keep[..., :gates]]
    found = torch.cat([part.double() for part in parts], -1)
    return nn.functional.pad(found, (0, 20 - found.shape[-1]))


def parts(writes: Writes) -> tuple[Tensor, ...]:
    return writes.keys, writes.values, writes.log_keep, writes.erase, writes.write


def after(writes: Writes, state: Tensor) -> Tensor:
    return scan(None, *parts(writes), state)[1]


def zeros(batch: int) -> Tensor:
    return torch.zeros(batch, 1, 2, 3, dtype=torch.float64)


def worst(config: Any, length: int) -> Tensor:
    """The context that reaches the ceiling."""
    t = torch.arange(length)
    keys = torch.eye(3, dtype=torch.float64)[0].repeat(length, 1)
    values, keep = torch.ones(length, 2), OPEN
    if isinstance(config, DeltaConfig) and ceiling(config, 4) == 4:
        values *= (-1.0) ** t[:, None]
        keep = -OPEN  # at λ = 0 and β = 1, s turns into v − s
    elif not isinstance(config, HebbianConfig):
        row, kept = keys[0], getattr(config, "most_keep", 1.0)  # the next key is across the row
        for i in range(1, length):
            keys[i] = torch.stack([-row[1], row[0], row[2]]) / row.norm()
            row = kept * row + keys[i]
    scores = torch.full((length, 2), OPEN)
    context = keys, values, scores, scores.sign() * keep
    return hidden(config, *(part[None] for part in context))


@each
def test_ceilings_are_reached(config: Any) -> None:
    """So none can be lowered, and a setting is bounded where its ceiling ends."""
    assert config.bounded == (ceiling(config, 1e12) < 100)
    with torch.no_grad():
        for length in (1, 2, 5, 30, 120):
            writes = opened(config)(worst(config, length))
            size = after(writes, zeros(1)).norm(dim=-1) / writes.values.abs().max()
            expected = torch.full_like(size, ceiling(config, length))
            assert_close(size, expected, atol=0, rtol=1e-3)


def candidates(config: Any, state: Tensor, random: torch.Generator, count: int) -> Tensor:
    """Single tokens (N, 1, 20): keys along, nearly along and across a row of the state, or anywhere; all gates."""

    def one_of(*choices: float, width: int) -> Tensor:
        drawn = torch.randint(len(choices), (count, 1, width), generator=random)
        return torch.tensor(choices, dtype=torch.float64)[drawn]

    anywhere = torch.randn(count, 1, 3, generator=random, dtype=torch.float64)
    row = nn.functional.normalize(state[0, 0, 0] + 1e-9, dim=-1)
    across = anywhere - (anywhere @ row)[..., None] * row
    kinds = torch.stack([anywhere, row.expand_as(anywhere), row + 0.05 * anywhere, across])
    keys = kinds[torch.randint(4, (count,), generator=random), torch.arange(count)]
    scores = [one_of(-OPEN, -1.0, 0.0, 1.0, OPEN, width=2) for _ in range(2)]
    return hidden(config, nn.functional.normalize(keys, dim=-1), one_of(-1, 1, width=2), *scores)


def greedy(config: Any, cell: Cell) -> Tensor:
    """Token after token the one of 200 that makes the state largest."""
    random, state, chosen = torch.Generator().manual_seed(0), zeros(1), []
    for _ in range(WRITES):
        tokens = candidates(config, state, random, 200)
        states = after(cell(tokens), state.expand(200, -1, -1, -1))
        best = int(states.flatten(1).norm(dim=1).argmax())
        chosen.append(tokens[best])
        state = states[best : best + 1]
    return torch.stack(chosen, 1)


def ascended(config: Any, cell: Cell, start: Tensor) -> Tensor:
    """Up the gradient of the state's norm, with respect to keys, values from −1 to 1 and gates."""
    tokens = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([tokens], lr=0.3, maximize=True)
    for _ in range(30):
        optimizer.zero_grad()
        after(cell(tokens), zeros(len(tokens))).flatten(1).norm(dim=1).sum().backward()
        optimizer.step()
        tokens.data[..., 3:5].clamp_(-1, 1)
    return tokens.detach()


@each
def test_no_attack_exceeds_the_ceiling(config: Any) -> None:
    """Neither does a search from token to token nor an ascent; and they come near, so they are attacks."""
    cell = opened(config)
    random = torch.Generator().manual_seed(1)
    noise = torch.cat([candidates(config, zeros(1), random, 8) for _ in range(WRITES)], 1)
    noise[..., :3] *= 1000
    with torch.no_grad():
        searched = greedy(config, cell)
    attacks = [searched, noise, *(ascended(config, cell, x) for x in (noise, noise / OPEN))]
    for length in (3, 16, WRITES):
        found = []
        for attack in attacks:
            with torch.no_grad():
                writes = cell(attack[:, :length])
            start = zeros(len(attack))
            state = after(writes, start)
            found.append((state.norm(dim=-1) / writes.values.abs().amax(1)).max())
            _, same = scan_with(chunked, (writes.keys, *parts(writes), start))
            assert_close(same, state, atol=1e-9, rtol=1e-9)
        assert 0.5 < max(found) / ceiling(config, length) < 1 + 1e-9


@settings(max_examples=10)
@given(st.floats(0.01, 0.99), st.integers(0, 999))
def test_coupled_gates_that_never_open_fully(most: float, seed: int) -> None:
    """β ≤ b < 1, standard update, keys of length 1: with c = max(1 − β, |1 − 2β|), ‖s'‖ ≤ c‖s‖ + β|v|, and
    β / (1 − c) is 1 up to β = 2/3 and grows from there: no row exceeds max(1, b / (2 − 2b)). Alternating values reach it.
    """
    config = DeltaConfig(**SIZES)
    limit = max(1, most / (2 - 2 * most))
    score = math.log(most / (1 - most))
    random = torch.Generator().manual_seed(seed)
    noise = torch.cat([candidates(config, zeros(1), random, 8) for _ in range(WRITES)], 1)
    noise[..., 5:7].clamp_(max=score)
    with torch.no_grad():
        assert after(opened(config)(noise), zeros(8)).norm(dim=-1).max() <= limit + 1e-9
        steady = worst(config, 2000)
        steady[..., 5:7] = score
        reached = after(opened(config)(steady), zeros(1)).norm(dim=-1).max().item()
    assert reached <= limit + 1e-9
    if most >= 2 / 3:
        assert reached == pytest.approx(limit, rel=1e-6)


@each_delta
def test_keys_of_any_length_let_a_state_explode(config: DeltaConfig) -> None:
    """normalize=False: one key of length 3, β = λ = ½ where they are free to be, and a value that was written once."""
    config = replace(config, normalize=False)
    assert not config.bounded
    keys = torch.tensor([3000.0, 0, 0]).expand(1, 150, 3)
    values, scores = torch.zeros(1, 150, 2), torch.zeros(1, 150, 2)
    values[:, 0] = 1
    context = hidden(config, keys, values, scores, scores)
    with torch.no_grad():
        cell = opened(config)
        sizes = [after(cell(context[:, :n]), zeros(1)).norm().item() for n in (2, 12, 150)]
    assert sizes[1] > 1.5**10 * sizes[0]
    assert 1.5**148 * sizes[0] < sizes[2] < math.inf


@each
@settings(max_examples=5)
@given(seed=st.integers(0, 999))
def test_what_was_there_before_fades(config: Any, seed: int) -> None:
    """Two memories that read the same come closer, row by row, by Π max(λ, |λ − e|): nothing a context did lasts longer
    than that. It is Π λ where λ stands outside."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        tokens = torch.randn(4, 9, 20, generator=random, dtype=torch.float64)
        writes = opened(config)(2 * tokens)
    first, second = (torch.randn(4, 1, 2, 3, generator=random).double() for _ in range(2))
    left = (after(writes, first) - after(writes, second)).norm(dim=-1)
    keep = writes.log_keep.exp()
    shares = torch.maximum(keep, (keep - writes.erase).abs())
    if getattr(config, "update", "lambda_outside") == "lambda_outside":
        assert_close(shares, keep, atol=0, rtol=0)
    assert (left <= shares.prod(1) * (first - second).norm(dim=-1) + 1e-12).all()


@each_delta
def test_no_context_freezes_or_saturates_a_memory(config: DeltaConfig) -> None:
    """Closed gates leave the state, while they last. Then one write at β = 1 reads back v, whatever was there; only
    with coupled or free gates of the standard update, (λ − 1)Sk is added to it."""
    full = after(opened(config)(worst(config, 100)), zeros(1))
    keys = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(0))
    values, shut = torch.ones(1, 30, 2), torch.full((1, 30, 2), -OPEN)
    with torch.no_grad():
        closed = opened(config)(hidden(config, keys, values, shut, -shut))
        one = opened(config)(hidden(config, keys, values, -shut, shut)[:, :1])
    frozen = after(closed, full)
    assert_close(frozen, full * config.most_keep**30, atol=0, rtol=1e-12)
    written = recalled(after(one, frozen), one)
    rest = (one.log_keep.exp() - one.erase)[0, 0] * recalled(frozen, one)
    assert_close(written, one.values[0, 0] + rest, atol=1e-9, rtol=1e-9)
    if config.update == "lambda_outside" or config.forgetting == "none":
        assert_close(written, one.values[0, 0], atol=1e-9, rtol=1e-9)


def recalled(state: Tensor, write: Writes) -> Tensor:
    """S k, (1, 2)."""
    return torch.einsum("hvk,hk->hv", state[0], write.keys[0, 0])
