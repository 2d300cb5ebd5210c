"""Types of models beside those of docs/families.md's table: each is exact, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError
from memwrite.inference.read import read
from memwrite.protocols import Conditioning
from memwrite.state import Tokens

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
EXACT = [
    "afmoe",
    "apertus",
    "arcee",
    "aria_text",
    "biogpt",
    "bitnet",
    "cohere2",
    "cohere2_moe",
    "cwm",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "exaone_moe",
    "falcon_mamba",
    "flex_olmo",
    "gemma",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "gptj",
    "granitemoe",
    "granitemoeshared",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "lfm2_moe",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mixtral",
    "nanochat",
    "olmoe",
    "persimmon",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "seed_oss",
    "solar_open",
    "vaultgemma",
]
REFUSED = {
    "doge": "a memory cannot enter its layers",
    "gemma3n_text": "looks tokens up again in every layer",
    "gemma4_text": "differ in size",
    "jamba": "a memory cannot enter its layers",
    "llama4_text": "attention layers of Llama4ForCausalLM were not found",
    "mimo_v2_flash": "not supported",
    "minimax": "not supported",
    "moshi": "the projections of MoshiAttention were not found",
    "xglm": "a memory cannot enter its layers",
    "opt": "attention layers of OPTForCausalLM were not found",
}

#: Small sizes in the words of all families; each takes those that it knows.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4, "vocab_size": 300, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1, "state_size": 8, "time_step_rank": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "gemma3n_text": {"num_kv_shared_layers": 0, "num_hidden_layers": 4, "intermediate_size": [48] * 4,
                     "layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": {"num_kv_shared_layers": 0, "head_dim": None, "num_hidden_layers": 4,
                    "layer_types": ["sliding_attention", "full_attention"] * 2},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "qwen3_5_moe_text": {"num_hidden_layers": 4},
}  # fmt: skip


def described(kind: str) -> BackboneConfig:
    known = AutoConfig.for_model(kind)
    own = OWN.get(kind, {})
    names = {n for n in SIZES if own.get(n, n) is not None and (n in known.to_dict() or n in own)}
    names |= {name for name in SIZES if name in known.attribute_map and name not in own}
    params = {name: SIZES[name] for name in names} | {n: v for n, v in own.items() if v is not None}
    return BackboneConfig(type=kind, params=params, dtype="float32")


@pytest.mark.parametrize("kind", EXACT)
def test_reads_are_those_of_transformers(kind: str) -> None:
    """Two rows of different lengths, read behind key-values and states of their own."""
    backbone = load_backbone(described(kind))
    model = backbone.model
    ids = torch.randint(3, 250, (2, 18), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([11, 7])
    with torch.no_grad():
        past = backbone.forward(backbone.embed(ids[:, :11]), lengths=lengths, use_cache=True)
        query = Tokens.from_rows([ids[0, 11:].tolist(), ids[1, 7:].tolist()])
        logits = read(backbone, Conditioning(key_values=past.key_values), query).logits
        for row, length in enumerate(lengths.tolist()):
            whole = model(ids[row : row + 1]).logits[0, length:].float()
            torch.testing.assert_close(
                logits[row, : len(whole)], whole, rtol=0, atol=1e-4 * float(whole.abs().max())
            )


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused_in_a_sentence(kind: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[kind]) as refusal:
        load_backbone(described(kind))
    assert "\n" not in str(refusal.value)


def test_the_page_names_them() -> None:
    text = " ".join(PAGE.read_text().split())
    assert ", ".join(f"`{kind}`" for kind in EXACT) in text
