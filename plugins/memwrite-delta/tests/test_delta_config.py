"""Settings of the matrix writers: which warn, which are refused, and where a writer has its layers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from memwrite_delta import DeltaConfig, GatedDeltaConfig, HebbianConfig
from memwrite_delta.config import MatrixConfig
from memwrite_specs.testing import MODELS

from memwrite import Memory
from memwrite.config import part_config
from memwrite.errors import ConfigError

OUTSIDE = {"update": "lambda_outside"}
FREE = {"forgetting": "free"}


def build(writer: str, **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": MODELS["gpt2"],
            "writer": {"name": writer, "params": params},
            "reader": {"name": "lora"},
        }
    )


@pytest.mark.parametrize(
    ("writer", "params"),
    [
        ("delta", OUTSIDE),
        ("delta", {**OUTSIDE, "gates": "head"}),
        ("delta", {**OUTSIDE, **FREE, "most_keep": 0.999}),
        ("hebbian", {}),
    ],
)
def test_bounded_settings_are_quiet(writer: str, params: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(writer, **params)


@pytest.mark.parametrize(
    ("writer", "params"),
    [
        ("delta", {}),
        ("delta", {**OUTSIDE, "normalize": False}),
        ("delta", {**OUTSIDE, **FREE}),
        ("delta", {**OUTSIDE, **FREE, "most_keep": 0.9, "normalize": False}),
        ("delta", {**OUTSIDE, "forgetting": "none"}),
        ("delta", {**FREE, "most_keep": 0.9}),
        ("hebbian", {"keep": 1.0}),
        ("gated-delta", {}),
    ],
)
def test_unbounded_settings_warn_once(writer: str, params: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=f"writer '{writer}': .*do not bound the state") as caught:
        build(writer, **params)
    assert len(caught) == 1


REFUSED: list[tuple[type[MatrixConfig], dict[str, Any], str]] = [
    (DeltaConfig, {"rank": 0}, "rank must be at least 1, got 0"),
    (DeltaConfig, {"value_width": 0}, "value_width must be at least 1, got 0"),
    (DeltaConfig, {"heads": -1}, "heads must be at least 1, got -1"),
    (HebbianConfig, {"writes": 0}, "writes must be at least 1, got 0"),
    (GatedDeltaConfig, {"layers": [1, 1]}, "layers must be different numbers from 0 on"),
    (DeltaConfig, {"layers": [-1]}, "layers must be different numbers from 0 on"),
    (DeltaConfig, {"granularity": "word"}, "granularity must be token or message or sentence"),
    (DeltaConfig, {"granularity": "message", "reads": "later"}, "reads must be earlier or before"),
    (DeltaConfig, {"reads": "before"}, "reads before goes with granularity message or sentence"),
    (DeltaConfig, {"gates": "all"}, "gates must be row or head, got 'all'"),
    (DeltaConfig, {"forgetting": "some"}, "forgetting must be coupled or free or none"),
    (DeltaConfig, {"update": "outside"}, "update must be standard or lambda_outside"),
    (DeltaConfig, {**FREE, "most_keep": 0.0}, "most_keep must be above 0 and at most 1"),
    (DeltaConfig, {**FREE, "most_keep": 1.1}, "most_keep must be above 0 and at most 1"),
    (DeltaConfig, {**FREE, "most_keep": float("nan")}, "most_keep must be above 0 and at most 1"),
    (
        DeltaConfig,
        {"most_keep": 0.9},
        "most_keep and keep_bias go with forgetting free, not 'coupled'",
    ),
    (DeltaConfig, {"beta_bias": float("inf")}, "beta_bias must be finite, got inf"),
    (DeltaConfig, {"gate_weight": -1.0}, "gate_weight must not be negative, got -1.0"),
    (DeltaConfig, {"gate_weight": float("nan")}, "gate_weight must"),
    (DeltaConfig, {"gate_target": 1.5}, "gate_target must be from 0 to 1, got 1.5"),
    (HebbianConfig, {"keep": 0.0}, "keep must be above 0 and at most 1, got 0.0"),
    (HebbianConfig, {"keep": 1.01}, "keep must be above 0 and at most 1, got 1.01"),
    (HebbianConfig, {"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    (HebbianConfig, {"learning_rate": float("inf")}, "learning_rate must"),
    (HebbianConfig, {"gates": "row"}, "unknown key writer.params.gates"),
    (GatedDeltaConfig, {"most_keep": 0.9}, "unknown key writer.params.most_keep"),
    (DeltaConfig, {"rank": "many"}, "rank"),
]


@pytest.mark.parametrize(("kind", "params", "message"), REFUSED)
def test_values_out_of_range_are_refused(
    kind: type[MatrixConfig], params: dict[str, Any], message: str
) -> None:
    """In one sentence that says where the value stands."""
    with pytest.raises(ConfigError) as caught:
        part_config(kind, params, "writer.params")
    assert message in str(caught.value)
    assert "writer.params." in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:writer '")
@pytest.mark.parametrize("writer", ["delta", "hebbian", "gated-delta"])
def test_layers(writer: str) -> None:
    """Those that are named, in order; all where none is; and none that the backbone lacks."""
    assert build(writer).writer.spec.layers == (0, 1)
    state = build(writer, layers=[1], rank=5, value_width=3, heads=2).writer.init(4)
    assert state.spec.layers == (1,)
    assert state["S"].shape == (4, 1, 2, 3, 5)
    assert build(writer, layers=[1, 0]).writer.spec.layers == (0, 1)
    with pytest.raises(
        ConfigError, match=r"writer\.params\.layers names layer 2, .* layers 0 to 1"
    ):
        build(writer, layers=[0, 2])


def test_width_of_values() -> None:
    """That of keys, unless said otherwise."""
    assert DeltaConfig(rank=5).values == 5
    assert DeltaConfig(rank=5, value_width=2).values == 2
