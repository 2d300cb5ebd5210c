"""Where the readers' weights begin, and which settings and states are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from memwrite_lora import (
    LORA,
    PER_EXAMPLE_LORA,
    STATIC_LORA,
    LoraConfig,
    LoraReader,
    PerExampleLoraConfig,
    StaticLoraConfig,
    StaticLoraReader,
)
from memwrite_specs.testing import FAMILIES, families

from memwrite import Memory, StateSpec
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig, part_config
from memwrite.errors import ConfigError, ContractViolation, IncompatiblePair
from memwrite.plugins import registry
from memwrite.protocols import LayerReader

HEADS, VALUES, KEYS = 2, 3, 4
EMPTY = StateSpec("empty", {})
Shapes = dict[str, tuple[int, ...]]


def backbone(family: str = "llama", dtype: str = "float64") -> TransformersBackbone:
    return load_backbone(BackboneConfig(**{**families.model(family), "dtype": dtype}))


def matrices(*layers: int) -> StateSpec:
    return StateSpec("matrix", {"S": (len(layers), HEADS, VALUES, KEYS)}, layers)


# ---- where the weights begin -------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_base_slice_is_the_models_own_first_columns(family: str) -> None:
    """Each of length `gain`; never more than `slice_width` or Dv, whatever the number of heads."""
    model, everything = backbone(family), ["q", "k", "v", "o"]
    for width, taken in ((2, 2), (8, VALUES)):
        config = LoraConfig(everything, init="base-slice", gain=0.05, slice_width=width)
        reader: Any = LORA.build(config, model, matrices(0, 1))
        for layer in (0, 1):
            for name in everything:
                found = reader.layers[str(layer)].delta[name].detach()
                weight = families.weight(model.model, layer, name)
                assert found.shape == (len(weight), HEADS * VALUES)
                for column in range(taken):
                    wanted = 0.05 * weight[:, column] / weight[:, column].norm()
                    torch.testing.assert_close(found[:, column], wanted)
                assert (found[:, taken:] == 0).all()


def test_parameters_are_those_asked_for() -> None:
    """By name, shape, start and dtype; other projections have none."""
    torch.manual_seed(0)
    model = backbone("qwen3", "bfloat16")
    reader = LoraReader(LoraConfig(), model, matrices(2, 0))
    each = {"query": (8, 32), "delta.q": (48, 6), "delta.o": (32, 6)}
    assert {name: tuple(weight.shape) for name, weight in reader.named_parameters()} == {
        f"layers.{layer}.{name}": shape for layer in (0, 2) for name, shape in each.items()
    }
    assert not reader.get_parameter("layers.2.delta.q").any()
    config = LoraConfig(
        ["v", "q", "o"], init="random", scale="projection", scale_init=0.5, o_norm=True
    )
    full = LoraReader(config, model, matrices(2))
    weights = {name.removeprefix("layers.2."): p for name, p in full.named_parameters()}
    assert list(weights) == ["query", "o_norm", "scale", "delta.q", "delta.v", "delta.o"]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert (weights["o_norm"] == 1).all()
    torch.testing.assert_close(2 * weights["scale"].sigmoid(), torch.full((3,), 0.5))
    assert 0.9 < weights["query"].abs().max() * math.sqrt(32) <= 1
    assert 0.9 < weights["delta.q"].abs().max() * math.sqrt(6) / 0.05 <= 1
    assert isinstance(full, LayerReader)


def test_a_static_readers_are_those_of_a_lowrank_state() -> None:
    torch.manual_seed(0)
    reader: Any = STATIC_LORA.build(StaticLoraConfig(), backbone("qwen3", "bfloat16"), EMPTY)
    assert {name: tuple(weight.shape) for name, weight in reader.named_parameters()} == {
        "A.q": (3, 8, 32), "A.o": (3, 8, 48), "B.q": (3, 48, 8), "B.o": (3, 32, 8),
    }  # fmt: skip
    assert {weight.dtype for weight in reader.parameters()} == {torch.float32}
    assert 0.9 < reader.A["o"].abs().max() * math.sqrt(48) <= 1
    assert not reader.B["o"].any()
    assert not isinstance(reader, LayerReader)


# ---- what can go wrong -------------------------------------------------------------------------

POSITIVE = ("alpha", "gain", "o_norm_eps", "scale_init", "scale_max")


@pytest.mark.parametrize(
    ("config", "params", "sentence"),
    [
        (LoraConfig, {"projections": ["q", "x"]}, "projections = 'x': known: k, o, q, v$"),
        (LoraConfig, {"projections": []}, "at least one of q, k, v, o"),
        (LoraConfig, {"projections": ["q", "q"]}, "name each one once"),
        (LoraConfig, {"projections": ["q"], "o_norm": True}, "o_norm goes with projection 'o'"),
        (LoraConfig, {"init": "base_slice"}, "did you mean 'base-slice'"),
        (LoraConfig, {"scale": "layers"}, "did you mean 'layer'"),
        (LoraConfig, {"slice_width": 0}, "slice_width must be at least 1"),
        (LoraConfig, {"scale_init": 2.0}, "scale_init must be below scale_max"),
        *[(LoraConfig, {name: 0.0}, f"{name} must be positive") for name in POSITIVE],
        (LoraConfig, {"alpha": math.inf}, "alpha must be positive and finite"),
        (StaticLoraConfig, {"rank": 0}, "rank must be at least 1, got 0"),
        (StaticLoraConfig, {"alpha": -1.0}, "alpha must be positive and finite, got -1"),
        (StaticLoraConfig, {"projections": ["query"]}, "projections = 'query': known: down, gate"),
        (LoraConfig, {"projections": ["gate"]}, "projections = 'gate': known: k, o, q, v$"),
        (StaticLoraConfig, {"layers": [1, 1]}, "layers must name each one once"),
        (PerExampleLoraConfig, {"alpha": math.nan}, "alpha must be positive and finite, got nan"),
    ],
)
def test_impossible_settings_are_refused(
    config: type[Any], params: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^reader\.params\..*{sentence}"):
        part_config(config, params, "reader.params")


@pytest.mark.parametrize("layer", [-1, 3])
def test_layers_must_be_the_backbones(layer: int) -> None:
    with pytest.raises(ConfigError, match=f"names layer {layer}, but .* the layers 0 to 2"):
        StaticLoraReader(StaticLoraConfig(layers=[layer]), backbone(), EMPTY)


@pytest.mark.parametrize(
    ("shapes", "layers", "sentence"),
    [
        ({"S": (2, 1, 2, 2)}, (0, 3), r"for layers \[0, 3\], but the backbone has the layers 0 to"),
        ({"S": (2, 1, 2, 2)}, (1, 1), "each once"),
        ({"S": (2, 1, 2, 2)}, (0,), "'S' .* should begin with an axis of 1"),
        ({"A.q": (2, 2, 32)}, (0, 1), "has 'A.q' but no 'B.q'"),
        ({"B.o": (2, 32, 2)}, (0, 1), "has 'B.o' but no 'A.o'"),
        ({"A.q": (2, 2, 32), "B.q": (2, 32, 3)}, (0, 1), "the axis r.q has 2 elements, but 3"),
        ({"A.q": (2, 0, 32), "B.q": (2, 32, 0)}, (0, 1), "one rank r of at least 1"),
        ({"A.k": (2, 2, 32), "B.k": (2, 32, 2)}, (0, 1), r"'k' in layer 0 has \(16, 32\)"),
        ({"A.q": (1, 2, 32), "B.q": (1, 32, 2)}, (0, 1), "'A.q' .* should begin with an axis of 2"),
        ({"A.q": (2, 2, 32), "B.q": (2, 32, 2)}, (0, 3), "the backbone has the layers 0 to 2"),
    ],
)
def test_shapes_must_be_the_backbones(
    shapes: Shapes, layers: tuple[int, ...], sentence: str
) -> None:
    kind = "matrix" if "S" in shapes else "lowrank"
    plugin = LORA if kind == "matrix" else PER_EXAMPLE_LORA
    with pytest.raises(ContractViolation, match=sentence):
        plugin.build(plugin.config(), backbone(), StateSpec(kind, shapes, layers))


@pytest.mark.parametrize("plugin", [LORA, STATIC_LORA, PER_EXAMPLE_LORA])
def test_each_is_found_and_needs_its_kind_of_state(plugin: Any) -> None:
    assert registry().reader(plugin.name) is plugin
    config = {"writer": {"name": "full-context"}, "reader": {"name": plugin.name}}
    with pytest.raises(IncompatiblePair, match=f"reader '{plugin.name}' reads"):
        Memory.from_config({"backbone": families.model("gpt2"), **config})
