"""Capacity: the oracles by their definitions, the measure by what is known, and the golden numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memwrite_bench.curves import (
    Curve,
    Point,
    Rule,
    measure,
    measure_linear,
    measure_memory,
    state_size,
)
from memwrite_specs.oracles import delta, hebbian, ridge
from torch import Tensor
from torch.nn import functional as F

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.backbones.tokenizers import character_tokenizer
from memwrite.evaluation.scores import Scores, bits_recalled, fano_bits
from memwrite.protocols import ReadOutput, WriteOutput

RULES: list[Rule] = [hebbian, delta, ridge]
each_rule = pytest.mark.parametrize("rule", RULES)
seeds = st.integers(0, 2**32)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- linear memories, against what was measured once -------------------------------------------


def test_a_full_square_state() -> None:
    """Width 64, 64 pairs, 64 values; a single pass."""
    exact = {rule: measure_linear(rule, 64, [64]).points[0].exact_match for rule in RULES}
    assert exact[hebbian] == pytest.approx(0.994, abs=0.005)
    assert exact[delta] == pytest.approx(0.863, abs=0.02)
    assert exact[ridge] == pytest.approx(1, abs=0.001)


def test_only_the_delta_rule_forgets_what_was_overwritten() -> None:
    """24 keys of width 64, each written eight times."""
    points = {rule: measure_linear(rule, 64, [24], rewrites=8).points[0] for rule in RULES}
    assert points[delta].exact_match == pytest.approx(0.993, abs=0.005)
    assert points[hebbian].exact_match == pytest.approx(0.155, abs=0.02)
    assert points[ridge].exact_match == pytest.approx(0.155, abs=0.03)


@pytest.mark.parametrize(("width", "pairs"), [(8, 3.4), (16, 14), (32, 44), (64, 134)])
def test_pairs_that_a_hebbian_memory_holds(width: int, pairs: float) -> None:
    grid = [round(pairs * part) for part in (0.6, 0.8, 1, 1.2)]
    pairs_held = measure_linear(hebbian, width, grid, trials=100).pairs_at(0.9)
    assert pairs_held == pytest.approx(pairs, rel=0.15)


# ---- the measure -------------------------------------------------------------------------------


def test_measured_again_it_is_the_same() -> None:
    assert measure_linear(delta, 8, [2, 9], seed=3) == measure_linear(delta, 8, [2, 9], seed=3)
    assert measure_linear(delta, 8, [9]) != measure_linear(delta, 8, [9], seed=3)


@pytest.mark.parametrize("pairs", [4, 8, 16])
def test_values_without_keys_are_bound_by_chance(pairs: int) -> None:
    """Keys and values of a state that are put together at random."""

    def unbound(keys: Tensor, values: Tensor) -> Tensor:
        order = draw(*keys.shape[:2], seed=pairs).argsort(1)
        return ridge(keys, values.take_along_dim(order[..., None], 1))

    (point,) = measure_linear(unbound, 32, [pairs], values=512, trials=150).points
    assert point.set_recall == 1
    assert point.binding == point.exact_match == pytest.approx(1 / pairs, abs=0.03)
    low, high = point.interval
    assert low < 1 / pairs < high


def test_nothing_recalled_is_bound_to_nothing() -> None:
    curve = measure_linear(lambda keys, values: -hebbian(keys, values), 64, [1])
    assert curve.points[0].binding is None
    assert curve.points[0].bits == curve.points[0].bits_per_float == 0


def signs(keys: Tensor, values: Tensor) -> Tensor:
    """One bit per number."""
    return hebbian(keys, values).sign()


@given(st.sampled_from([*RULES, signs]), st.integers(1, 9), st.integers(1, 40), st.integers(2, 99))
def test_never_more_bits_than_there_are(rule: Rule, width: int, pairs: int, values: int) -> None:
    (point,) = measure_linear(rule, width, [pairs], values, trials=8).points
    assert (point.state_floats, point.state_bytes) == (width**2, 8 * width**2)
    assert 0 <= point.bits <= pairs * math.log2(values) + 1e-9
    assert point.bits_per_float is not None
    assert point.bits_per_float_interval is not None
    low, high = point.bits_per_float_interval
    assert 0 <= low <= point.bits_per_float <= high
    # The lower end, because eight trials may be lucky.
    assert low <= (1 if rule is signs else 64)


def test_a_state_of_signs_holds_less_than_a_bit_per_number() -> None:
    most = max(
        point.bits_per_float or 0 for point in measure_linear(signs, 16, [8, 32, 128]).points
    )
    assert 0.05 < most < 1


def test_intervals_cover_what_many_trials_come_to() -> None:
    truth = measure_linear(hebbian, 8, [6], trials=5000, seed=99).points[0]
    points = [
        measure_linear(hebbian, 8, [6], trials=20, seed=seed).points[0] for seed in range(100)
    ]
    covered = sum(p.interval[0] <= truth.exact_match <= p.interval[1] for p in points)
    assert covered >= 88
    narrow = truth.bits_per_float_interval
    assert narrow is not None
    assert narrow[1] - narrow[0] < 0.1 * narrow[1]


def point(pairs: int, exact: float, floats: int = 10) -> Point:
    scores = Scores(exact, (max(exact - 0.1, 0), min(exact + 0.1, 1)), 100, exact, exact, None)
    return Point.of(scores, pairs, 4, (floats, 4 * floats))


def test_where_a_curve_falls_to_a_share() -> None:
    curve = Curve("made", (point(30, 0.4), point(10, 1.0), point(20, 0.8)))
    assert curve.pairs_at(0.9) == pytest.approx(15)
    assert curve.pairs_at(0.8) == pytest.approx(20)
    assert curve.pairs_at(0.5) == pytest.approx(27.5)
    assert curve.pairs_at(0.1) is curve.pairs_at(1.1) is None


def test_tables_and_plain_data() -> None:
    curve = measure("made", lambda pairs, trials, seed: point(pairs, 1.0, trials), [1, 12], 0)
    lines = curve.table()
    assert lines[0] == "made"
    assert len({len(line) for line in lines[1:]}) == 1
    assert [line.split()[0] for line in lines[1:]] == ["pairs", "1", "12"]
    assert " ".join(lines[3].split()) == "12 100.0% 90.0% to 100.0% 100.0% - 24.0 - -"
    (first, _), name = curve.as_dict()["points"], curve.as_dict()["name"]
    assert (name, first["pairs"], first["bits"], first["bits_per_float"]) == ("made", 1, 2, None)


# ---- memories of language models ---------------------------------------------------------------

WIDE = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def built(writer: str) -> Memory:
    """A transformer of width 128 and eight slots, not trained."""
    config: dict[str, Any] = {
        "backbone": {
            "type": "llama",
            "params": WIDE,
            "tokenizer": "characters",
            "attention": "eager",
        },
        "writer": {"name": writer, "params": {"slots": 8}},
        "reader": {"name": "prefix"},
    }
    return Memory.from_config(config)


@pytest.mark.parametrize("writer", ["gradient", "forward"])
def test_untrained_slots_hold_nothing_in_1024_floats(writer: str) -> None:
    memory = built(writer)
    assert state_size(memory.write(Tokens.from_rows([[5, 6], [7]])).state.tensors.values()) == (
        8 * 128,
        4 * 8 * 128,
    )
    curve = measure_memory(memory, [2, 5], value_length=1, contexts=4)
    assert curve.name == writer
    assert [p.pairs for p in curve.points] == [2, 5]
    assert {(p.state_floats, p.state_bytes, p.choices) for p in curve.points} == {(1024, 4096, 62)}
    assert all(p.exact_match < 0.3 and p.interval[0] < 1 / 62 < p.interval[1] for p in curve.points)


class Notebook:
    """Four pairs `!k:v!` as they came, and the first value for every other key."""

    training = False
    config = SimpleNamespace(writer=SimpleNamespace(name="notebook"))
    backbone = SimpleNamespace(
        tokenizer=character_tokenizer(),
        info=SimpleNamespace(positions=0, device=torch.device("cpu")),
    )

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def write(self, context: Tokens) -> WriteOutput:
        ids = context.ids[:, :20]
        kept = F.pad(ids, (0, 20 - ids.shape[1])).float()
        return WriteOutput(MemoryState(StateSpec("own", {"kept": (20,)}), {"kept": kept}))

    def read(self, state: MemoryState, queries: Tokens) -> ReadOutput:
        kept, keys = state["kept"].long(), queries.ids[..., 2]
        places = (keys[..., None] == kept[:, None, 1::5]).long().argmax(-1)
        answers = F.one_hot(kept[:, 3::5].gather(1, places), 70).float()
        return ReadOutput(answers[:, :, None].expand(*queries.ids.shape, -1), None)


def test_a_memory_that_keeps_four_pairs() -> None:
    memory: Any = Notebook()
    curve = measure_memory(memory, [4, 8, 16], key_length=1, value_length=1, contexts=50)
    whole, half, quarter = curve.points
    assert (curve.name, whole.state_floats, whole.state_bytes) == ("notebook", 20, 80)
    assert whole.bits_per_float == pytest.approx(4 * math.log2(62) / 20)
    assert [p.exact_match for p in (half, quarter)] == pytest.approx([1 / 2, 1 / 4], abs=0.03)
    assert {p.set_recall for p in curve.points} == {1}
    assert half.binding == half.exact_match
    assert curve.pairs_at(0.75) == pytest.approx(6, abs=0.2)


@pytest.mark.parametrize(
    ("shapes", "floats"),
    [
        pytest.param({"A": (4, 384, 128), "z": (4, 384)}, 198_144, id="ARMT"),
        pytest.param({"W": (4, 4, 32, 32), "b": (4, 4, 32)}, 4 * 4 * (32**2 + 32), id="TTT-Linear"),
        pytest.param({f"w{i}": (4, 4, 32, 32) for i in range(3)}, 4 * 3 * 4 * 32**2, id="LaCT"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_golden_state_sizes(
    shapes: dict[str, tuple[int, ...]], floats: int, dtype: torch.dtype
) -> None:
    spec = StateSpec("own", shapes, dtype=dtype)
    tensors = {name: torch.zeros(3, *shape, dtype=dtype) for name, shape in shapes.items()}
    state = MemoryState(spec, tensors)
    size = state_size(state.tensors.values())
    assert size == (floats, dtype.itemsize * floats) == (spec.floats, spec.nbytes)
    assert size == (state.floats // 3, state.nbytes // 3)


def test_golden_state_size_of_mamba() -> None:
    """Of the tensors that its cache holds after some tokens."""
    from transformers import MambaConfig, MambaModel

    config = MambaConfig(
        vocab_size=70, hidden_size=256, expand=2, state_size=16, conv_kernel=4, num_hidden_layers=4
    )
    with torch.no_grad():
        cache = MambaModel(config)(torch.ones(2, 3, dtype=torch.long), use_cache=True).cache_params
    held = [
        tensor
        for layer in cache.layers
        for states in (layer.conv_states, layer.recurrent_states)
        for tensor in states.values()
    ]
    assert state_size(held)[0] == 4 * 512 * (16 + 4)


def test_sizes_that_make_no_sense() -> None:
    assert state_size([]) == (0, 0)
    with pytest.raises(ValueError, match="batch size"):
        state_size([torch.zeros(2, 3), torch.zeros(3, 3)])
    with pytest.raises(ValueError, match="batch size"):
        state_size([torch.zeros(0, 3)])


@pytest.mark.parametrize(
    ("exact", "floats", "published", "best"),
    [
        pytest.param([1, 0.999, 0.991, 0.884], 1024, 0.94, 96, id="GradMem K=5"),
        pytest.param([0.963, 0.869, 0.586, 0.326], 1024, 0.38, 64, id="GradMem K=1"),
        pytest.param([0.455, 0.443, 0.193, 0.129], 1024, 0.13, 32, id="RMT"),
        pytest.param([0.974, 0.549, 0.226, 0.152], 198_144, 0.0009, 16, id="ARMT"),
    ],
)
def test_bits_per_float_of_the_published_table(
    exact: list[float], floats: int, published: float, best: int
) -> None:
    """GradMem (arXiv 2603.13875), keys and values of two characters: the best of its four numbers of pairs."""
    rates = {
        pairs: pairs * bits_recalled(share, 2) / floats
        for pairs, share in zip((16, 32, 64, 96), exact, strict=True)
    }
    assert max(rates, key=rates.__getitem__) == best
    assert rates[best] == pytest.approx(published, abs=0.6 * 10 ** -len(str(published)[2:]))


@given(st.integers(2, 5000), st.floats(0, 1), st.floats(0, 1))
def test_bits_rise_with_exact_match(choices: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= fano_bits(low, choices) <= fano_bits(high, choices) + 1e-9
    assert fano_bits(1, choices) == math.log2(choices)
