"""A rule of what each query sees of a memory's slots, in every family: where it treats all alike, it is a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import families
import pytest
import torch
from memwrite_specs.testing import tolerance
from torch import Tensor

from memwrite import Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError
from memwrite.inference import generate as generating
from memwrite.inference import read as reading
from memwrite.protocols import Conditioning, KeyValues, LayerActivations, SlotRule

each_family = pytest.mark.parametrize("family", families.EVERY)
each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
pytestmark = pytest.mark.filterwarnings("ignore:memory and text are longer")


def backbone_of(family: str, attention: str) -> TransformersBackbone:
    return load_backbone(
        BackboneConfig(
            type=families.architecture(family),
            params=families.EVERY[family],
            dtype="float64",
            attention=attention,
        )
    )


def memories(backbone: TransformersBackbone) -> tuple[KeyValues, KeyValues]:
    """The same memory of two lengths with a random bias, and with a rule that says the same."""
    tokens = Tokens.from_rows([[1, 2, 3, 4, 5], [6, 7, 8]])
    past = backbone.forward(
        backbone.embed(tokens.ids), lengths=tokens.mask.sum(1), use_cache=True
    ).key_values
    assert past is not None
    draw = torch.Generator().manual_seed(0)
    bias = torch.randn(past.keys.shape[:-1], dtype=torch.float64, generator=draw)
    bias = bias.masked_fill(torch.rand(bias.shape, generator=draw) < 0.3, -torch.inf)
    groups = backbone.info.heads // backbone.info.kv_heads

    def same(tensors: Mapping[str, Tensor], seen: LayerActivations) -> Tensor:
        ours = tensors["bias"][:, :, seen.layer].transpose(1, 2).repeat_interleave(groups, 1)
        return ours[:, :, None].expand(-1, -1, seen.queries.shape[2], -1)

    rule = SlotRule({"bias": bias.movedim(3, 1)}, same)
    return replace(past, bias=bias), replace(past, rule=rule)


@each_family
@each_attention
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_it_is_a_bias(family: str, attention: str, options: dict[str, Any]) -> None:
    backbone = backbone_of(family, attention)
    query = Tokens.from_rows([[9, 10, 11], [12, 13]])
    biased, ruled = (Conditioning(key_values=past) for past in memories(backbone))
    expected = reading.read(backbone, biased, query).logits
    found = reading.read(backbone, ruled, query).logits
    torch.testing.assert_close(found, expected, **tolerance(family))
    options = {"max_new_tokens": 6, **options}
    new = [generating.generate(backbone, each, query, options) for each in (biased, ruled)]
    assert torch.equal(*new)
    if family == "llama":
        free = Conditioning(key_values=replace(memories(backbone)[0], bias=None))
        assert not torch.allclose(reading.read(backbone, free, query).logits, expected, atol=1e-3)


@each_attention
def test_each_query_has_its_own(attention: str) -> None:
    """A query that sees nothing of the memory goes on as without it; the rule knows its position."""
    backbone = backbone_of("llama", attention)
    _, past = memories(backbone)
    places: list[list[int]] = []

    def first_sees(tensors: Mapping[str, Tensor], seen: LayerActivations) -> Tensor:
        assert seen.positions is not None
        places.append(seen.positions[0].tolist())
        hidden = torch.zeros(2, 4, seen.queries.shape[2], 5, dtype=torch.float64)
        hidden[:, :, 1:] = -torch.inf
        return hidden

    ids = torch.tensor([[9, 10, 11], [12, 13, 14]])
    run = backbone.forward(backbone.embed(ids), past=replace(past, rule=SlotRule({}, first_sees)))
    whole = backbone.forward(backbone.embed(ids), past=replace(past, rule=None))
    torch.testing.assert_close(run.hidden[:, 0], whole.hidden[:, 0])
    assert not torch.allclose(run.hidden[:, 1], whole.hidden[:, 1], atol=1e-3)
    assert places[0] == [5, 6, 7]


def test_a_rule_that_is_passed_over_is_refused() -> None:
    """By a layer whose attention is another function than the one that models look up."""
    backbone = backbone_of("llama", "eager")
    _, past = memories(backbone)
    for layer in backbone.model.model.layers:
        layer.self_attn.config = backbone.model.config.__class__(**backbone.model.config.to_dict())
        layer.self_attn.config._attn_implementation = "eager"
    with pytest.raises(ConfigError, match="does not let a memory choose slots"):
        backbone.forward(backbone.embed(torch.tensor([[9], [10]])), past=past)
