"""What names a backbone: its weights, the architecture fields that compute, and its tokenizer.

A fingerprint is `<architecture>-v2-<32 hex digits>`. It must come out the same under every version of transformers, so
it is taken over an explicit list of fields: `config.to_dict()` changes from one version to the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from memwrite.backbones import ngram_embedding
from memwrite.backbones.tokenizers import ByteTokenizer, Tokenizer, TransformersTokenizer
from memwrite.utils.hashing import CachedDigest, digest_of

SCHEME = "v2"

#: Fields of a transformers config that change what a model of given weights computes. One that is absent, None or
#: False counts as not set, so that a library version that adds it changes nothing.
_FIELDS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    # normalisation and activation
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "norm_epsilon",
    "use_parallel_residual",
    "parallel_attn",
    "num_ln_in_parallel_attn",
    "multi_query",
    "num_kv_heads",
    "activation",
    "new_decoder_architecture",
    "apply_residual_connection_post_layernorm",
    "do_layer_norm_before",
    # attention
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "window_size",
    "attention_types",
    "attention_chunk_size",
    "no_rope_layers",
    "alibi",
    "clip_qkv",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "use_qk_norm",
    "qk_layernorm",
    # scales
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
    "scale_embedding",
    "scale_emb",
    "scale_depth",
    "dim_model_base",
    "lm_head_multiplier",
    "key_multiplier",
    "attention_in_multiplier",
    "attention_out_multiplier",
    "mlp_multipliers",
    # mixtures of experts
    "num_experts_per_tok",
    "norm_topk_prob",
    "routed_scaling_factor",
    "n_group",
    "topk_group",
    # recurrent layers of hybrid models
    "mamba_n_heads",
    "mamba_d_head",
    "mamba_d_state",
    "mamba_n_groups",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_allow_neg_eigval",
    "mamba_num_heads",
    "mamba_head_dim",
    "ssm_state_size",
    "n_groups",
    "num_heads",
    "time_step_limit",
    "mamba_norm_before_gate",
    "mamba_rms_norm",
    "ssm_in_multiplier",
    "ssm_out_multiplier",
    "ssm_multipliers",
    ngram_embedding.ATTRIBUTE,
)
_ROPE_FIELDS = ("rope_theta", "partial_rotary_factor")
_ROPE_SCALING_FIELDS = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "mscale",
    "mscale_all_dim",
)
_PROBE = (
    "The quick brown fox, isn't it?  It cost $1,234.50 (or 3.14e-10%) on 2024-02-29!\n\n\tdef f(x): return x ** 2\n"
    " Ünïcödé naïve ﬁ ½ ²; Привет, мир. 你好，世界。こんにちは مرحبا नमस्ते 👩‍👩‍👧 zzz   end"
)


class Fingerprints:
    """The names of one backbone, taken again only when its weights have changed.

    Args:
        model: the transformers model.
        tokenizer: turns texts into its ids.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self._weights = model.state_dict
        self._current = CachedDigest(lambda: fingerprint(model.config, self._weights(), tokenizer))
        self._v1 = CachedDigest(lambda: fingerprint_v1(model.config, self._weights()))

    @property
    def current(self) -> str:
        """The name that files are given now."""
        return self._current.of(self._weights().values())

    def include(self, name: str) -> bool:
        """Whether `name` is the current one, or that which the backbone had in files of format 1."""
        if is_current(name):
            return name == self.current
        return name == self._v1.of(self._weights().values())


def fingerprint(config: Any, weights: Mapping[str, Tensor], tokenizer: Tokenizer) -> str:
    """Return the name of a backbone: equal for two that compute the same from the same texts.

    Dtype, device, attention implementation and the place of the files are no part of it.

    Args:
        config: of the transformers model.
        weights: the model's state dict; hashed as float32.
        tokenizer: turns texts into the model's ids.
    """
    parts = [_architecture(config), digest_of(weights), _tokenizer_digest(tokenizer)]
    digest = hashlib.sha256(_canonical(parts)).hexdigest()[:32]
    return f"{config.model_type}-{SCHEME}-{digest}"


def fingerprint_v1(config: Any, weights: Mapping[str, Tensor]) -> str:
    """Return the name that files of format 1 have for a backbone: over the whole config, and without the tokenizer."""
    ignored = ("transformers_version", "dtype", "architectures", "_name_or_path")
    described = {k: v for k, v in config.to_dict().items() if k not in ignored}
    description = json.dumps(described, sort_keys=True, default=str)
    return f"{config.model_type}-{digest_of(weights, description)}"


def is_current(name: str) -> bool:
    """Whether a fingerprint is of the scheme that `fingerprint` gives."""
    return f"-{SCHEME}-" in name


def _architecture(config: Any) -> dict[str, Any]:
    fields = {name: getattr(config, name, None) for name in _FIELDS}
    # Families without grouped heads lack the field in some versions of transformers, as others lack "head_dim".
    if heads := fields["num_attention_heads"]:
        fields["num_key_value_heads"] = fields["num_key_value_heads"] or heads
        fields["head_dim"] = fields["head_dim"] or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and set(kinds) != {"full_attention"}:
        fields["layer_types"] = list(kinds)
    fields["rope"] = _rope(config)
    return {
        name: value for name, value in fields.items() if value is not None and value is not False
    }


def _rope(config: Any) -> dict[str, Any]:
    """Return what sets the rotary frequencies, in one shape for every version of transformers."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if any(isinstance(value, Mapping) for value in given.values()):  # one for each type of layer
        return {kind: _rope_fields(value, config) for kind, value in sorted(given.items()) if value}
    return _rope_fields(given, config)


def _rope_fields(given: Mapping[str, Any], config: Any) -> dict[str, Any]:
    kind = given.get("rope_type", given.get("type")) or "default"
    names = _ROPE_FIELDS if kind == "default" else (*_ROPE_FIELDS, *_ROPE_SCALING_FIELDS)
    fields = {name: given.get(name, getattr(config, name, None)) for name in names}
    if fields["partial_rotary_factor"] == 1:  # as where the field is not known
        fields["partial_rotary_factor"] = None
    fields["rope_type"] = kind
    return {name: value for name, value in fields.items() if value is not None}


def _tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Return a digest of what decides the ids of a text: vocabulary, merges, special tokens, chat template.

    How a text is normalised and split is seen in the ids of a probe: library versions describe it in different words.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return "bytes"
    parts: list[Any] = [tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id]
    if isinstance(tokenizer, TransformersTokenizer):
        inner = tokenizer.wrapped
        template = inner.chat_template
        parts += [inner.get_vocab(), template.strip() if isinstance(template, str) else template]
        backend = getattr(inner, "backend_tokenizer", None)
        if backend is None:
            parts.append(inner.convert_tokens_to_ids(inner.tokenize(_PROBE)))
        else:
            model = json.loads(backend.to_str())["model"]
            merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or ()]
            scores = model["vocab"] if isinstance(model.get("vocab"), list) else None
            parts += [merges, scores, backend.encode(_PROBE, add_special_tokens=False).ids]
    return hashlib.sha256(_canonical(parts)).hexdigest()[:32]


def _canonical(data: Any) -> bytes:
    return json.dumps(_normal(data), sort_keys=True).encode()


def _normal(data: Any) -> Any:
    """Return `data` with one spelling for each value: whether a number is an int is a library version's choice."""
    if isinstance(data, Mapping):
        return {str(key): _normal(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_normal(value) for value in data]
    if isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    return data if data is None or isinstance(data, (str, bool)) else str(data)
