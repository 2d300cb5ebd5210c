"""Loading a backbone from a folder or hub id, or building one from scratch."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from memwrite.backbones import adapters, ngram_embedding
from memwrite.backbones.remote_code import load_error
from memwrite.backbones.saving import quiet
from memwrite.backbones.size_limits import check_folder, check_numbers, count_weights
from memwrite.backbones.sources import model_folder
from memwrite.backbones.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    TransformersTokenizer,
    load_tokenizer,
)
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig, load_config
from memwrite.errors import ConfigError, did_you_mean
from memwrite.protocols import ProjectionDeltas
from memwrite.utils.progress import announcing
from memwrite.utils.rng import seeded

# A run folder keeps the model it trained in here.
MODEL_FOLDER = "backbone"


def load_backbone(config: BackboneConfig, seed: int = 0) -> TransformersBackbone:
    """Load or build the backbone that `config` describes; built weights depend on `seed` alone.

    Raises:
        ConfigError: device, folder, hub id, model type or its parameters cannot be used, or such models are
            not supported.
    """
    device = _device(config.device)
    with seeded(seed), announcing(f"Loading '{config.path or config.type}'"):
        if config.path is not None:
            base, corrections = base_of(config)
            source = _model_source(str(base.path))
            model, tokenizer = _pretrained(base, source), load_tokenizer(source)
            for folder in corrections:
                adapters.read(folder).apply(model)
            _check_bytes(model.config.get_text_config(), tokenizer, config.path)
        else:
            tokenizer = load_tokenizer(config.tokenizer)
            model = _built(config, tokenizer)
    ngram_embedding.attach(model)
    model = model.to(device).eval()
    model.requires_grad_(config.trainable)
    new = config.trainable or config.path is None
    backbone = TransformersBackbone(model, tokenizer, needs_saving=new)
    _check_logits(backbone)
    _check_corrections(backbone)
    return backbone


def backbone_of(model: Any, tokenizer: Any) -> TransformersBackbone:
    """Return a backbone around a model and a tokenizer of transformers that are loaded already.

    The model is in evaluation mode from then on and generates as memwrite's options say; its weights stay as and where
    they are. Several memories can share one backbone, and a model can be handed in again.

    Args:
        model: a causal language model.
        tokenizer: the model's.

    Raises:
        ConfigError: such models, or such tokenizers, are not supported.
    """
    ngram_embedding.attach(model)
    known = bool(model.name_or_path)
    backbone = TransformersBackbone(
        model.eval(), TransformersTokenizer(tokenizer), needs_saving=not known
    )
    _check_logits(backbone)
    _check_corrections(backbone)
    return backbone


@torch.no_grad()
def _check_logits(backbone: TransformersBackbone) -> None:
    """Refuse families that scale their embeddings or logits in ways we do not know, rather than give other logits."""
    if getattr(backbone.model.config, "hidden_size_per_layer_input", 0):
        raise ConfigError(
            f"'{backbone.info.architecture}' looks tokens up again in every layer, which a memory's vectors cannot "
            f"stand for: take a model of another family"
        )
    ids = torch.tensor([[backbone.info.bos_id]], device=backbone.info.device)
    try:
        expected = backbone.model(ids, use_cache=False).logits.float()
        computed = backbone.logits(backbone.forward(backbone.embed(ids)).hidden).float()
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"the '{backbone.info.architecture}' that is described cannot be run: {error}"
        ) from None
    if expected.isnan().any():
        raise ConfigError(
            f"the '{backbone.info.architecture}' that is described gives logits that are no numbers: its weights are "
            f"damaged, or its sizes and constants do not go together"
        )
    bar = 0.01 * float(expected.abs().max())
    if not torch.allclose(computed, expected, rtol=0, atol=bar):
        raise ConfigError(
            f"'{backbone.info.architecture}' computes its logits in a way that is not supported"
        )


class _Probe:
    """A `LayerAdapter` that adds nothing to a layer's projections, and notes which of them asked what to add."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self.asked: list[str] = []

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return {name: partial(self._nothing, name) for name in self._names}

    def _nothing(self, name: str, inputs: Tensor) -> Tensor:
        self.asked.append(name)
        return inputs.new_zeros(())

    def rows(self, index: Tensor) -> Self:
        return self


@torch.no_grad()
def _check_corrections(backbone: TransformersBackbone) -> None:
    """Refuse families that run their layers in ways in which a memory would change nothing without a word."""
    try:
        _probe_layers(backbone)
    except ConfigError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"'{backbone.info.architecture}' is not supported: a memory cannot enter its layers ({error})"
        ) from None


def _probe_layers(backbone: TransformersBackbone) -> None:
    ids = torch.full((1, 3), backbone.info.bos_id, device=backbone.info.device)
    embeddings = backbone.embed(ids)
    whole = backbone.forward(embeddings).hidden.float()
    kept = backbone.forward(embeddings[:, :1], use_cache=True).key_values
    assert kept is not None
    # A family that cannot take a bias must not fail at the first memory that brings one.
    biased = replace(kept, bias=kept.keys.new_zeros(kept.keys.shape[:-1]))
    for past, start in ((None, 0), (kept, 1), (biased, 1)):
        probes = {n: _Probe(backbone.projection_names(n)) for n in range(backbone.info.layers)}
        run = backbone.forward(embeddings[:, start:], past=past, corrections=probes)
        for layer, probe in probes.items():
            if sorted(probe.asked) != sorted(backbone.projection_names(layer)):
                raise ConfigError(
                    f"'{backbone.info.architecture}' is not supported: layer {layer} computes its projections in a way "
                    f"that a memory cannot change; take a model of another family"
                )
        bar = 0.05 * float(whole.abs().max())
        if not torch.allclose(run.hidden.float(), whole[:, start:], rtol=0, atol=bar):
            raise ConfigError(
                f"'{backbone.info.architecture}' is not supported: with a cache it computes something else than without "
                f"one; take a model of another family"
            )


def built_weights(config: BackboneConfig) -> int:
    """Return the number of weights of a model that is to be built from scratch.

    Raises:
        ConfigError: it cannot be built.
    """
    described = _described(config, load_tokenizer(config.tokenizer))
    try:
        return count_weights(described)
    except Exception as error:  # impossible sizes make transformers raise errors of every kind
        raise _undescribed(config, error) from None


def _pretrained(config: BackboneConfig, source: str) -> Any:
    check_folder(Path(source))
    try:
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                attn_implementation=_attention(config),
                dtype=getattr(torch, config.dtype),
                output_loading_info=True,
                use_safetensors=True,  # never pickles
                trust_remote_code=False,
            )
    except Exception as error:  # a damaged folder makes transformers raise errors of every kind
        reason = load_error(error)
        raise ConfigError(
            f"backbone.path '{config.path}' holds no model that can be loaded: {reason}"
        ) from None
    if config.ngram not in (1, length := getattr(model.config, ngram_embedding.ATTRIBUTE, 1)):
        raise ConfigError(
            f"backbone.ngram = {config.ngram}, but the model in '{config.path}' was built with {length}, and keeps that"
        )
    # transformers would go on with random numbers in their place.
    if lacking := sorted(report["missing_keys"]):
        raise ConfigError(
            f"the model in '{config.path}' lacks the weights {', '.join(lacking[:3])}"
        )
    return model


def _built(config: BackboneConfig, tokenizer: Tokenizer) -> Any:
    described = _described(config, tokenizer)
    try:
        # Drawn in float32 whatever the dtype, so that one seed means one model.
        model = AutoModelForCausalLM.from_config(
            described,
            attn_implementation=_attention(config),
            dtype=torch.float32,
            trust_remote_code=False,
        )
    except Exception as error:  # impossible sizes make transformers raise errors of every kind
        raise _undescribed(config, error) from None
    # Not model.to(dtype), which would round the frequencies of rotary embeddings too.
    dtype = getattr(torch, config.dtype)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    model.config.dtype = dtype
    return model


def _check_bytes(described: PretrainedConfig, tokenizer: Tokenizer, source: str) -> None:
    """Read bytes into memwrite's own byte models alone, however large their vocabulary was made."""
    if not isinstance(tokenizer, ByteTokenizer) or described.vocab_size == tokenizer.vocab_size:
        return
    if (described.bos_token_id, described.eos_token_id) != (tokenizer.bos_id, tokenizer.eos_id):
        raise ConfigError(
            f"'{source}' holds a model of {described.vocab_size} tokens but no tokenizer that is known: put its "
            f"tokenizer.json beside it"
        )


def _attention(config: BackboneConfig) -> str | None:
    # None is "sdpa" where the family has it, else "eager": Gemma 2 caps attention scores, which "sdpa" cannot.
    return None if config.attention == "sdpa" else config.attention


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"backbone.device '{name}' is not a device: try cpu or cuda") from None
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        kind = device.type.upper()
        raise ConfigError(
            f"backbone.device is '{name}', but no {kind} device of that name is available: use cpu"
        ) from None
    return device


def base_of(config: BackboneConfig) -> tuple[BackboneConfig, list[Path]]:
    """Return the model that nobody corrected, and the adapters to put into it, one after the other.

    Raises:
        ConfigError: run folders name each other as what they correct.
    """
    folders: list[Path] = []
    while True:
        if config.adapter is not None:
            folders.append(Path(config.adapter))
        own = Path(str(config.path)) / adapters.ADAPTER_FOLDER
        if not own.is_dir():
            return config, folders[::-1]
        if own in folders:
            raise ConfigError(
                f"'{own}' corrects itself: its run folder names the wrong backbone.path"
            )
        folders.append(own)
        corrected = load_config(own.parent / "config.yaml").backbone
        config = replace(config, path=corrected.path, adapter=corrected.adapter)


def _model_source(path: str) -> str:
    inner = Path(path) / MODEL_FOLDER
    return str(inner) if os.path.isdir(inner) else model_folder(path)


def _described(config: BackboneConfig, tokenizer: Tokenizer) -> PretrainedConfig:
    check_numbers(config.params, "backbone.params.")
    params = {"vocab_size": tokenizer.vocab_size, **config.params}
    params.setdefault("bos_token_id", tokenizer.bos_id)
    params.setdefault("eos_token_id", tokenizer.eos_id)
    params.setdefault("pad_token_id", None)
    try:
        known = AutoConfig.for_model(str(config.type))
    except ValueError:
        raise ConfigError(f"backbone.type '{config.type}' is not a transformers type") from None
    names = {*known.to_dict(), *type(known).attribute_map}
    for name in config.params:
        if name not in names:
            raise ConfigError(f"unknown key backbone.params.{name} ({did_you_mean(name, names)})")
    if config.ngram > 1:
        params[ngram_embedding.ATTRIBUTE] = config.ngram
    try:
        return AutoConfig.for_model(str(config.type), **params)
    except Exception as error:
        raise _undescribed(config, error) from None


def _undescribed(config: BackboneConfig, error: Exception) -> ConfigError:
    reason = str(error) or type(error).__name__
    return ConfigError(f"backbone.params do not describe a '{config.type}': {reason}")
