"""Models that laws run on: a tiny one in plain torch, exact in float64, and a small one of every family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TINY = "memwrite-tiny"


class TinyConfig(PretrainedConfig):  # type: ignore[misc]
    """Holds the sizes of `TinyModel`."""

    model_type = TINY

    def __init__(self, vocab_size: int = 258, **extra: Any) -> None:
        self.vocab_size = vocab_size
        self.hidden_size, self.num_hidden_layers = 16, 2
        self.num_attention_heads, self.num_key_value_heads, self.head_dim = 2, 1, 8
        self.max_position_embeddings = 512
        self.tie_word_embeddings = False
        super().__init__(**extra)


def eager_attention_forward(
    module: TinyAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attend by the book, as transformers' families do: to (B, T, H, Dh), and the weights.

    Args:
        module: what attends.
        query: (B, H, T, Dh).
        key: (B, Hkv, S, Dh).
        value: (B, Hkv, S, Dh).
        attention_mask: (B, H or 1, T, S), True where a key is seen, or what to add to the logits; None where all
            earlier ones are.
        scaling: factor of the logits.
    """
    groups, length, slots = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    logits = query @ key.repeat_interleave(groups, 1).mT * scaling
    if attention_mask is None:
        attention_mask = _causal(length, slots, logits.device)
    if attention_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
    else:
        logits = logits + attention_mask
    weights = logits.softmax(-1)
    mixed = weights @ value.repeat_interleave(groups, 1)
    return mixed.transpose(1, 2), weights


def _causal(length: int, slots: int, device: torch.device) -> Tensor:
    return torch.ones(length, slots, dtype=torch.bool, device=device).tril(slots - length)


class TinyAttention(nn.Module):
    """Causal attention with shared key heads; projections by the names that corrections look for."""

    def __init__(self, config: TinyConfig, layer: int) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        self._layer, self._head, self._config = layer, head, config
        self.q_proj = nn.Linear(width, config.num_attention_heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head, width, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
    ) -> Tensor:
        queries, keys, values = (
            projection(hidden_states).unflatten(-1, (-1, self._head)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self._layer)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self._config._attn_implementation, eager_attention_forward
        )
        mixed, _ = attend(self, queries, keys, values, attention_mask, scaling=self._head**-0.5)
        return self.o_proj(mixed.flatten(2))  # type: ignore[no-any-return]


class TinyMlp(nn.Module):
    """A two-layer perceptron; projections by the names that corrections look for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(hidden)))  # type: ignore[no-any-return]


class TinyLayer(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a residual."""

    def __init__(self, config: TinyConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = TinyAttention(config, layer)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mlp = TinyMlp(width)

    def forward(self, hidden: Tensor, **extra: Any) -> Tensor:
        hidden = hidden + self.self_attn(self.norms[0](hidden), **extra)
        added: Tensor = self.mlp(self.norms[1](hidden))
        return hidden + added


class TinyStack(nn.Module):
    """Runs embeddings through the layers."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(TinyLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        **extra: Any,
    ) -> BaseModelOutputWithPast:
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        hidden = inputs_embeds + self.places(position_ids)
        if attention_mask is not None:
            seen = _causal(hidden.shape[1], attention_mask.shape[1], hidden.device)
            attention_mask = seen & attention_mask[:, None, None].bool()
        for layer in self.layers:
            hidden = layer(
                hidden, attention_mask=attention_mask, past_key_values=past_key_values, **extra
            )
        return BaseModelOutputWithPast(self.norm(hidden), past_key_values)


class TinyModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A causal language model in plain torch, with the outside of transformers' models.

    Nothing in it computes in less than the dtype of its weights, so that in float64 laws are held to 1e-9, and
    everything can be differentiated twice.
    """

    config_class = TinyConfig
    base_model_prefix = "model"

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.model = TinyStack(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Large enough that every part matters to the result, which initial models' parts do not.
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.4)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the weights are drawn in `__init__`."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **extra: Any
    ) -> CausalLMOutputWithPast:
        past = extra.get("cache", extra.get("past_key_values"))  # "cache" since transformers 5.24
        extra = {name: value for name, value in extra.items() if name in _PASSED}
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)
        done = self.model(inputs_embeds, past_key_values=past, **extra)
        logits = self.lm_head(done.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, past_key_values=done.past_key_values)


_PASSED = ("attention_mask", "position_ids", "use_cache")

AutoConfig.register(TINY, TinyConfig)
AutoModelForCausalLM.register(TinyConfig, TinyModel)


@dataclass(frozen=True)
class Build:
    """Describes a backbone that is made from scratch.

    Attributes:
        type: the type of transformers' model.
        params: the fields of its configuration.
        exact: whether it computes in float64 throughout if its weights are; else only some 1e-5 can be asked for.
    """

    type: str
    params: dict[str, Any] = field(default_factory=dict)
    exact: bool = False


_COMMON: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
_GEMMA = {**_COMMON, "query_pre_attn_scalar": 8, "sliding_window": 256}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.3}
_NO_HEAD_DIM = {name: value for name, value in _COMMON.items() if name != "head_dim"}

_COMMON_HYBRID = {**_NO_HEAD_DIM, "layer_types": ["linear_attention", "full_attention"]}
_DELTA = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_MAMBA2 = {
    "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 1,
    "chunk_size": 8, "initializer_range": 0.3,
}  # fmt: skip

#: By the name that `memwrite check --backbone` takes.
BACKBONES: dict[str, Build] = {
    "tiny": Build(TINY, exact=True),
    "gpt2": Build(
        "gpt2",
        {**_GPT2, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)},
        exact=True,
    ),
    "llama": Build("llama", _COMMON),
    "qwen3": Build("qwen3", _COMMON),
    "smollm3": Build("smollm3", _NO_HEAD_DIM),
    "mistral": Build("mistral", _COMMON),
    "phi3": Build("phi3", _NO_HEAD_DIM),
    "gemma2": Build("gemma2", _GEMMA),
    "gemma3": Build("gemma3_text", _GEMMA),
    "olmo-hybrid": Build("olmo_hybrid", {**_COMMON_HYBRID, **_DELTA}),
    "mamba2": Build("mamba2", _MAMBA2),
}
