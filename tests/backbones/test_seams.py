"""The seams of attention in every family: biased slots, observed activations, moved keys, changed projections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import families
import pytest
import torch
from families import WINDOW
from memwrite_specs.testing import HYBRIDS, plain_generate, tolerance
from torch import Tensor
from torch.nn import functional as F

from memwrite import Tokens
from memwrite.backbones.decoder_layers import attention_layers, attention_modules, blocks
from memwrite.backbones.generation import until_end
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError, InputError
from memwrite.inference import generate as generating
from memwrite.inference import read as reading
from memwrite.protocols import Conditioning, Gate, KeyValues, LayerActivations, StaticAdapter

_LLAMA = families.FAMILIES["llama"]
_LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 7.0],
    "original_max_position_embeddings": 24, "factor": 2.0,
}  # fmt: skip
#: More ways of building a layer: interleaved rotations, rotations that depend on the length.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (families.architecture(name), params) for name, params in families.EVERY.items()},
    **{name: (name, HYBRIDS[name]) for name in HYBRIDS if not name.startswith("mamba")},
    "glm": ("glm", {**_LLAMA, "head_dim": 8, "pad_token_id": 0}),
    "longrope": (
        "phi3",
        {**_LLAMA, "sliding_window": None, "rope_parameters": _LONG, "original_max_position_embeddings": 24},
    ),
    "dynamic": ("llama", {**_LLAMA, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    "yarn": (
        "llama",
        {
            **_LLAMA,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0,
                                "original_max_position_embeddings": 32},
        },
    ),
}  # fmt: skip
each_family = pytest.mark.parametrize("family", families.EVERY)
each_rotation = pytest.mark.parametrize("family", MORE)
HYBRID = [name for name in MORE if name in HYBRIDS]
each_layer = pytest.mark.parametrize("family", [*families.EVERY, *HYBRID, "glm"])
each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
pytestmark = pytest.mark.filterwarnings("ignore:memory and text are longer")


@cache
def backbone_of(family: str, attention: str) -> TransformersBackbone:
    kind, params = MORE[family]
    return load_backbone(
        BackboneConfig(type=kind, params=params, dtype="float64", attention=attention)
    )


def close(family: str) -> dict[str, float]:
    """Return `atol` and `rtol`; recurrent layers keep their states in float32, whatever the model's dtype."""
    return {"atol": 1e-4, "rtol": 1e-4} if family in HYBRIDS else tolerance(family)


def prefilled(backbone: TransformersBackbone, lists: list[list[int]]) -> KeyValues:
    tokens = Tokens.from_rows(lists)
    kept = backbone.forward(
        backbone.embed(tokens.ids), lengths=tokens.mask.sum(1), use_cache=True
    ).key_values
    assert kept is not None
    return kept


def biased(past: KeyValues, seed: int = 0) -> KeyValues:
    """Random numbers on every slot and key head, and -inf on some."""
    draw = torch.Generator().manual_seed(seed)
    shape = past.keys.shape[:-1]
    bias = 2 * torch.randn(shape, dtype=torch.float64, generator=draw)
    hidden = torch.rand(shape, generator=draw) < 0.3
    hidden[:, :, 0, 1] = True
    return KeyValues(
        past.keys, past.values, past.mask, past.next_position, bias.masked_fill(hidden, -torch.inf)
    )


@contextmanager
def attended(backbone: TransformersBackbone) -> Iterator[list[Tensor]]:
    """Keep what each layer's attention hands to its output projection."""
    outputs: list[Tensor] = []
    hooks = []
    for attention in attention_modules(backbone.model):
        names = ("o_proj", "c_proj", "dense")
        module: Any = next(getattr(attention, n) for n in names if hasattr(attention, n))
        hooks.append(module.register_forward_pre_hook(lambda _, args: outputs.append(args[0])))
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def naive_attention(
    backbone: TransformersBackbone, seen: LayerActivations, real: Tensor, bias: Tensor | None
) -> Tensor:
    """(B, T, H · Dh) from queries, keys and values, in plain operations.

    Args:
        backbone: for its window and cap.
        seen: of one layer.
        real: (B, S), which slots are real.
        bias: (B, Hkv, M) on the first slots.
    """
    config = backbone.model.config
    groups = backbone.info.heads // backbone.info.kv_heads
    keys, values = (t.repeat_interleave(groups, 1) for t in (seen.keys, seen.values))
    scores = seen.queries @ keys.mT * seen.scale
    if cap := getattr(config, "attn_logit_softcapping", None):
        scores = (scores / cap).tanh() * cap
    if bias is not None:
        padded = F.pad(bias, (0, scores.shape[-1] - bias.shape[-1]))
        scores = scores + padded.repeat_interleave(groups, 1)[:, :, None]
    rank = real.cumsum(1)
    distance = rank[:, -scores.shape[2] :, None] - rank[:, None]
    kinds = getattr(config, "layer_types", None)
    local = kinds is None or kinds[seen.layer] == "sliding_attention"
    window = backbone.windows.size if local and backbone.windows.size else 10_000
    visible = (distance >= 0) & (distance < window) & real[:, None]
    weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1).nan_to_num()
    return (weights @ values).transpose(1, 2).flatten(2)


@each_family
@each_attention
@pytest.mark.parametrize("past", [None, "full", "ragged"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_is_what_was_observed(
    family: str, attention: str, past: str | None, with_bias: bool
) -> None:
    """Queries, keys, values and scale are those that attention used, a bias of slots included; nothing else changes."""
    backbone = backbone_of(family, attention)
    kept = None
    if past is not None:
        kept = prefilled(
            backbone, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10][: 5 if past == "full" else 3]]
        )
        kept = biased(kept) if with_bias else kept
    elif with_bias:
        return
    ids = torch.tensor([[11, 12, 13, 14], [15, 16, 17, 18]])
    embeddings = backbone.embed(ids)
    plain = backbone.forward(embeddings, past=kept, use_cache=True)
    seen: list[LayerActivations] = []
    with attended(backbone) as outputs:
        run = backbone.forward(embeddings, past=kept, observe=seen.append)
    torch.testing.assert_close(run.hidden, plain.hidden)
    assert [each.layer for each in seen] == [*range(backbone.info.layers)]
    assert plain.key_values is not None
    for layer, (each, output) in enumerate(zip(seen, outputs, strict=True)):
        torch.testing.assert_close(each.keys, plain.key_values.keys[:, layer])
        torch.testing.assert_close(each.values, plain.key_values.values[:, layer])
        bias = None if kept is None or kept.bias is None else kept.bias[:, layer]
        expected = naive_attention(backbone, each, plain.key_values.mask, bias)
        torch.testing.assert_close(output, expected, **tolerance(family))
        assert each.hidden.shape == (2, 4, backbone.info.hidden_size)
    if layer_norm := getattr(blocks(backbone.model)[0], "input_layernorm", None):
        scale = getattr(backbone.model.config, "embedding_multiplier", 1)
        torch.testing.assert_close(seen[0].hidden, layer_norm(scale * embeddings))


@each_family
@each_attention
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_generation_under_a_bias(family: str, attention: str, options: dict[str, Any]) -> None:
    """A slot that is hidden from every head is as good as gone; each row has its own bias."""
    backbone = backbone_of(family, attention)
    lists, gone = [[1, 2, 3], [4, 5, 6]], (0, 2)
    past = prefilled(backbone, lists)
    bias = torch.zeros(past.keys.shape[:-1], dtype=torch.float64)
    for row, slot in enumerate(gone):
        bias[row, :, :, slot] = -torch.inf
    hidden = KeyValues(past.keys, past.values, past.mask, past.next_position, bias)
    query = Tokens.from_rows([[7], [8]])
    # All within the window, which counts hidden slots too.
    options = {"max_new_tokens": WINDOW - 4, **options}
    new = generating.generate(backbone, Conditioning(key_values=hidden), query, options)
    unbiased = generating.generate(backbone, Conditioning(key_values=past), query, options)
    for row, slot in enumerate(gone):
        left = [i for i in range(3) if i != slot]
        fewer = KeyValues(
            past.keys[row : row + 1, :, :, left], past.values[row : row + 1, :, :, left],
            past.mask[row : row + 1, left], past.next_position[row : row + 1],
        )  # fmt: skip
        one = Tokens.from_rows([[7 + row]])
        expected = generating.generate(backbone, Conditioning(key_values=fewer), one, options)
        assert torch.equal(new[row], expected[0])
        read = [
            reading.read(backbone, Conditioning(key_values=kv), q).logits[r]
            for kv, q, r in ((fewer, one, 0), (hidden, query, row))
        ]
        torch.testing.assert_close(read[1], read[0], **tolerance(family))
    if family == "llama" and not options.get("num_beams"):
        assert not torch.equal(new, unbiased)


@each_family
@each_attention
def test_generation_under_a_bias_is_the_first_choice_of_reads(family: str, attention: str) -> None:
    """Beyond the window too, and with memories of different lengths."""
    backbone = backbone_of(family, attention)
    past = biased(prefilled(backbone, [[1, 2, 3, 4, 5], [6, 7, 8]]), 1)
    conditioning = Conditioning(key_values=past)
    queries = [[9, 10, 11], [12, 13]]
    new = generating.generate(
        backbone, conditioning, Tokens.from_rows(queries), {"max_new_tokens": 5}
    ).tolist()
    for row, ids in enumerate(queries):
        alone = Conditioning(key_values=past.rows(torch.tensor([row])))
        for token in until_end(new[row], backbone.info.end_ids):
            logits = reading.read(backbone, alone, Tokens.from_rows([ids])).logits[0, -1]
            assert int(logits.argmax()) == token
            ids = [*ids, token]


@each_rotation
def test_moved_keys_are_those_of_other_positions(family: str) -> None:
    """The first layer's keys depend on their tokens and positions alone, so they tell."""
    backbone = backbone_of(family, "sdpa")
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    by = torch.tensor([[7, 7, 7, 7], [3, 3, 3, 3]])
    past = prefilled(backbone, ids.tolist())
    if family == "gpt2":
        with pytest.raises(ConfigError, match="not rotations"):
            backbone.rotate(past.keys, by)
        return
    moved = backbone.rotate(past.keys, by)
    past = replace(past, recurrent=None)
    empty = KeyValues(past.keys[:, :, :, :0], past.values[:, :, :, :0], past.mask[:, :0], by[:, 0])
    there = backbone.forward(backbone.embed(ids), past=empty, use_cache=True).key_values
    assert there is not None
    torch.testing.assert_close(moved[:, 0], there.keys[:, 0], **tolerance(family))
    for layer, attention in enumerate(attention_modules(backbone.model)):
        rotates = getattr(attention, "use_rope", True) and family != "nemotron_h"
        assert torch.equal(moved[:, layer], past.keys[:, layer]) != bool(rotates)
    torch.testing.assert_close(backbone.rotate(moved, -by), past.keys, **tolerance(family))
    # Relative positions are all that counts, in every layer.
    query = backbone.embed(torch.tensor([[9, 10], [11, 12]]))
    shifted = KeyValues(moved, past.values, past.mask, past.next_position + by[:, 0])
    torch.testing.assert_close(
        backbone.forward(query, past=shifted).hidden, backbone.forward(query, past=past).hidden, **close(family)
    )  # fmt: skip


# ---- changed projections -----------------------------------------------------------------------


def weights_of(backbone: TransformersBackbone) -> dict[tuple[int, str], Tensor]:
    return {
        (layer, name): backbone.projection(layer, name)
        for layer in range(backbone.info.layers)
        for name in sorted(backbone.projection_names(layer))
    }


def changes(backbone: TransformersBackbone, rows: int) -> dict[tuple[int, str], Tensor]:
    draw = torch.Generator().manual_seed(5)
    return {
        key: 0.1 * torch.randn(rows, *weight.shape, dtype=torch.float64, generator=draw)
        for key, weight in weights_of(backbone).items()
    }


def adapters(backbone: TransformersBackbone, deltas: Any, factor: float) -> dict[int, Any]:
    """Each projection y of input x becomes factor · y + x Δᵀ."""

    def apply(tensors: Any, _hidden: Tensor) -> dict[str, Any]:
        found = {}
        for name, delta in tensors.items():
            add = partial(lambda delta, inputs: inputs @ delta.mT, delta)
            scaled = Gate(torch.full((), factor, dtype=torch.float64), add)
            found[name] = add if factor == 1 else scaled
        return found

    return {
        layer: StaticAdapter(
            {name: delta for (at, name), delta in deltas.items() if at == layer}, apply
        )
        for layer in range(backbone.info.layers)
    }


@contextmanager
def edited(backbone: TransformersBackbone, deltas: Any, row: int, factor: float) -> Iterator[Any]:
    """The plain model with the changes worked into its weights and biases."""
    kept = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    with torch.no_grad():
        for module in {p.module for layer in backbone._projections._layers for p in layer.values()}:
            if getattr(module, "bias", None) is not None:
                module.bias.mul_(factor)
        for (layer, name), weight in weights_of(backbone).items():
            change = (factor - 1) * weight + deltas[layer, name][row]
            if name in "qkvo":
                families.add(backbone.model, layer, name, change)
            else:
                weight.add_(change)
    try:
        yield backbone.model
    finally:
        backbone.model.load_state_dict(kept)


@each_layer
@each_attention
@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_every_projection_is_that_of_edited_weights(
    family: str, attention: str, factor: float
) -> None:
    """In reads and generation, short and long, alone and in a batch, behind keys and values or not."""
    backbone = backbone_of(family, attention)
    kind, params = MORE[family]
    plain = load_backbone(
        BackboneConfig(type=kind, params=params, dtype="float64", attention=attention)
    )
    own = {"q", "k", "v", "o"} if family in HYBRIDS else {"q", "k", "v", "o", "up", "down"}
    assert own <= backbone.projection_names(0)
    deltas = changes(backbone, 2)
    draw = torch.Generator().manual_seed(1)
    prefix = torch.randn(2, 3, 32, dtype=torch.float64, generator=draw)
    lists = [[*range(1, 2 * WINDOW)], [8, 9]]
    conditioning = Conditioning(prefix=prefix, corrections=adapters(backbone, deltas, factor))
    query = Tokens.from_rows(lists)
    output = reading.read(backbone, conditioning, query).logits
    options: list[dict[str, Any]] = [{}, {"num_beams": 3}]
    new = [
        generating.generate(backbone, conditioning, query, {"max_new_tokens": 5, **o})
        for o in options
    ]
    for row, ids in enumerate(lists):
        embeddings = torch.cat([prefix[row : row + 1], backbone.embed(torch.tensor([ids]))], 1)
        with edited(plain, deltas, row, factor) as model:
            expected = model(inputs_embeds=embeddings, use_cache=False).logits[0, 3:]
            chosen = [plain_generate(model, o, inputs_embeds=embeddings) for o in options]
        torch.testing.assert_close(output[row, : len(ids)], expected.double(), **close(family))
        for rows, each in zip(new, chosen, strict=True):
            assert rows[row].tolist()[: each.shape[1]] == each[0].tolist()
    unchanged = reading.read(backbone, Conditioning(prefix=prefix), query).logits
    assert (unchanged - output).abs().max() > 0.1


def test_a_projection_that_is_not_there_is_refused() -> None:
    backbone = backbone_of("starcoder2", "sdpa")
    adapter = StaticAdapter({}, lambda _tensors, _hidden: {"gate": torch.zeros(())})
    with pytest.raises(ConfigError, match="no projection gate"):
        backbone.forward(backbone.embed(torch.tensor([[1]])), corrections={0: adapter})


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
def test_layers_that_lose_changes_when_they_are_replayed_say_so() -> None:
    """StableLM's layers do not hand keywords on to their attention, and checkpointing replays a layer with its keywords."""
    kind, params = MORE["stablelm"]
    backbone = load_backbone(BackboneConfig(type=kind, params=params, trainable=True))
    backbone.model.train()
    backbone.model.gradient_checkpointing_enable()
    adapter = StaticAdapter({}, lambda _tensors, hidden: {"q": torch.zeros_like(hidden)})
    embeddings = backbone.embed(torch.tensor([[1]]))
    backbone.forward(embeddings)
    with pytest.raises(ConfigError, match="turn it off"):
        backbone.forward(embeddings, corrections={0: adapter})


def test_a_falcon_with_alibi_is_refused() -> None:
    """Its attention depends on the number of slots before a token, which a memory changes."""
    _, params = MORE["falcon:new"]
    with pytest.raises(ConfigError, match="take one with rotary positions"):
        load_backbone(BackboneConfig(type="falcon", params={**params, "alibi": True}))


def test_a_rotation_that_depends_on_the_length_is_used_within_its_original_one() -> None:
    """Beyond it, rows and memories would depend on what stands beside and behind them."""
    backbone = backbone_of("longrope", "sdpa")
    assert backbone.info.positions == 24
    past = prefilled(backbone, [[*range(1, 18)]])
    query = Tokens.from_rows([[*range(20, 27)]])
    output = reading.read(backbone, Conditioning(key_values=past), query).logits[0]
    whole = torch.tensor([[*range(1, 18), *range(20, 27)]])
    expected = backbone.model(whole, use_cache=False).logits[0, 17:]
    torch.testing.assert_close(output, expected, **tolerance("longrope"))
    with pytest.raises(InputError, match=r"only 24 .beyond them its rotary embedding changes"):
        reading.read(backbone, Conditioning(key_values=past), Tokens.from_rows([[1] * 8]))
    new = generating.generate(backbone, Conditioning(key_values=past), Tokens.from_rows([[1]]), {})
    assert new.shape[1] == 6


def test_a_family_whose_projections_cannot_be_changed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer that computes a projection without its module is noticed when it is loaded."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x: F.linear(self.up_proj(x), self.down_proj.weight)
    )
    with pytest.raises(ConfigError, match="layer 0 computes its projections in a way"):
        load_backbone(BackboneConfig(type="llama", params=_LLAMA))


class Streams:
    """Scales what a layer receives and gives, and adds to it, by row; a `ResidualAdapter`."""

    def __init__(self, received: Tensor, given: Tensor) -> None:
        self._received, self._given = received, given

    def __call__(self, hidden: Tensor) -> dict[str, Tensor]:
        return {}

    def entering(self, hidden: Tensor) -> Tensor:
        return hidden * 1.5 + self._received[:, None]

    def leaving(self, hidden: Tensor) -> Tensor:
        return hidden * 0.5 + self._given[:, None]

    def rows(self, index: Tensor) -> Streams:
        return Streams(self._received[index], self._given[index])


@contextmanager
def changed_streams(model: Any, streams: dict[int, Streams]) -> Iterator[None]:
    """The plain model, its attending layers within modules that do the same."""
    attending = [layer.block for layer, _ in attention_layers(model)]
    originals = {number: attending[number].forward for number in streams}

    def forward(adapter: Streams, original: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        output = original(adapter.entering(hidden_states), *args, **kwargs)
        if isinstance(output, Tensor):
            return adapter.leaving(output)
        return adapter.leaving(output[0]), *output[1:]

    for number, adapter in streams.items():
        attending[number].forward = partial(forward, adapter, originals[number])
    try:
        yield
    finally:
        for number in streams:
            del attending[number].forward


@each_layer
@each_attention
def test_the_residual_stream_changes_on_both_sides_of_a_layer(family: str, attention: str) -> None:
    """In reads and generation, row by row, as in a model whose layers do so themselves."""
    backbone = backbone_of(family, attention)
    kind, params = MORE[family]
    plain = load_backbone(
        BackboneConfig(type=kind, params=params, dtype="float64", attention=attention)
    ).model
    draw = torch.Generator().manual_seed(1)
    streams = {
        layer: Streams(*torch.randn(2, 2, 32, dtype=torch.float64, generator=draw))
        for layer in range(backbone.info.layers)
    }
    lists = [[*range(1, 2 * WINDOW)], [8, 9]]
    conditioning = Conditioning(corrections=streams)
    query = Tokens.from_rows(lists)
    output = reading.read(backbone, conditioning, query).logits
    options: list[dict[str, Any]] = [{}, {"num_beams": 3}]
    new = [
        generating.generate(backbone, conditioning, query, {"max_new_tokens": 5, **o})
        for o in options
    ]
    for row, ids in enumerate(lists):
        own = {layer: each.rows(torch.tensor([row])) for layer, each in streams.items()}
        inputs = torch.tensor([ids])
        with changed_streams(plain, own):
            expected = plain(inputs, use_cache=False).logits[0]
            chosen = [plain_generate(plain, o, input_ids=inputs)[:, len(ids) :] for o in options]
        torch.testing.assert_close(output[row, : len(ids)], expected.double(), **close(family))
        for rows, each in zip(new, chosen, strict=True):
            assert rows[row].tolist()[: each.shape[1]] == each[0].tolist()
    unchanged = reading.read(backbone, Conditioning(), query).logits
    assert (unchanged - output).abs().max() > 0.1
