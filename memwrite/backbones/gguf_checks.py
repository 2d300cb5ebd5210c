"""What a GGUF file says of its model, held against the config that transformers makes of it.

transformers passes over what it does not know, and takes a family's default in its place. What the config does not say
as the file does is put right where that is exact, and refused where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from memwrite.backbones.size_limits import MAX_LAYERS, count_weights
from memwrite.errors import ConfigError

TOKENIZER = "tokenizer.ggml."
INSTEAD = "take the model as a transformers folder instead"
#: Factors of the rotary frequencies, one for each pair of dimensions.
ROPE_FACTORS = "rope_freqs.weight"

_EPSILON = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
#: Metadata that changes what is computed, and the fields of which one must have the same value.
_FIELDS = {
    "context_length": ("max_position_embeddings",),
    "attention.layer_norm_rms_epsilon": _EPSILON,
    "attention.layer_norm_epsilon": _EPSILON,
    "attention.sliding_window": ("sliding_window",),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "expert_used_count": ("num_experts_per_tok",),
}
#: Llama 3's scaling, which its files hold as factors alone.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip


def check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse a file without what is needed, or with a rotary embedding that transformers would not scale.

    Raises:
        ConfigError: it is such a file.
    """
    architecture = metadata.get("general.architecture")
    if architecture is None:
        raise ConfigError(f"'{path}' does not say what architecture its model has")
    if not metadata.get(f"{TOKENIZER}tokens") or f"{TOKENIZER}model" not in metadata:
        raise ConfigError(
            f"'{path}' holds no tokenizer, so no text can be given to its model: convert the model again with it"
        )
    if f"{TOKENIZER}eos_token_id" not in metadata:
        raise ConfigError(f"the tokenizer in '{path}' has no end-of-text (eos) token")
    layers = metadata.get(f"{architecture}.block_count", 0)
    if not isinstance(layers, int) or layers > MAX_LAYERS:
        raise ConfigError(
            f"'{path}': block_count is {layers}, and at most {MAX_LAYERS} can be meant"
        )
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind != "none" and metadata.get(f"{architecture}.rope.scaling.factor") != 1:
        raise ConfigError(
            f"'{path}' scales its rotary embedding ('{kind}'), which would be lost: {INSTEAD}"
        )


def check_config(
    path: Path, metadata: Mapping[str, Any], config: Any, tensors: Mapping[str, Tensor]
) -> None:
    """Refuse a file that says more than its config does, and put Llama 3's rotary embedding into the config.

    Args:
        path: the file.
        metadata: its metadata.
        config: that transformers makes of it.
        tensors: its tensors by name, of which only the rotary factors are looked into.

    Raises:
        ConfigError: the model of the config would compute something else than the file's.
    """
    architecture = metadata["general.architecture"]
    held: dict[str, list[Any]] = {
        **{name: [getattr(config, f, None) for f in fields] for name, fields in _FIELDS.items()},
        "rope.freq_base": [rope.get("rope_theta") for rope in _ropes(config)],
        "rope.dimension_count": [_rotated(config)],
    }
    for name, values in held.items():
        said = metadata.get(f"{architecture}.{name}")
        if said and not any(_same(said, value) for value in values):
            has = next((value for value in values if value is not None), None)
            raise ConfigError(
                f"'{path}' says {architecture}.{name} = {said}, but its model would run with {has}: {INSTEAD}"
            )
    # Of the Gemmas llama.cpp scales attention by the width of a head, but for the largest; the file does not say.
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar != _head_dim(config):
        raise ConfigError(
            f"'{path}' does not say how its model scales attention, which would be by {scalar}: {INSTEAD}"
        )
    if ROPE_FACTORS in tensors:
        _set_rope(path, config, tensors[ROPE_FACTORS])
    count = sum(tensor.numel() for name, tensor in tensors.items() if name != ROPE_FACTORS)
    meant = count_weights(config)
    if count != meant:
        odd = [name for name in tensors if name.startswith("rope_")]
        hint = f" ({', '.join(odd)} would be lost)" if odd else ""
        raise ConfigError(
            f"'{path}' holds {count} weights, but the '{config.model_type}' that it describes has {meant}{hint}: "
            f"{INSTEAD}"
        )


def _same(said: Any, value: Any) -> bool:
    numbers = isinstance(said, (int, float)) and isinstance(value, (int, float))
    return math.isclose(said, value, rel_tol=1e-5) if numbers else said == value


def _ropes(config: Any) -> list[Mapping[str, Any]]:
    """Return what sets the rotary frequencies: one for all layers, or one for each type of layer."""
    given = getattr(config, "rope_parameters", None) or {}
    inner = [value for value in given.values() if isinstance(value, Mapping)]
    return inner or [given]


def _head_dim(config: Any) -> int:
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def _rotated(config: Any) -> int:
    """Return how many dimensions of a head are rotated."""
    share = _ropes(config)[0].get("partial_rotary_factor") or getattr(
        config, "partial_rotary_factor", None
    )
    return int(_head_dim(config) * (share or 1))


def _set_rope(path: Path, config: Any, factors: Tensor) -> None:
    """Put the scaling that has these factors into the config.

    Raises:
        ConfigError: it is not that of Llama 3.
    """
    factors = factors.float()
    if torch.equal(factors, torch.ones_like(factors)):
        return
    plain = dict(config.rope_parameters)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](_with_rope(config, plain | _LLAMA3 | {"factor": 1.0}), "cpu")  # fmt: skip
    scaled = plain | _LLAMA3 | {"factor": float(factors.max())}
    slower, _ = ROPE_INIT_FUNCTIONS["llama3"](_with_rope(config, scaled), "cpu")
    fits = slower.shape == factors.shape and torch.allclose(
        frequencies / slower, factors, rtol=1e-3
    )
    if not fits:
        raise ConfigError(
            f"'{path}' scales its rotary embedding in a way that is not known here ({ROPE_FACTORS}): {INSTEAD}"
        )


def _with_rope(config: Any, rope: Mapping[str, Any]) -> Any:
    config.rope_parameters = {**rope, "rope_type": "llama3"}
    return config
