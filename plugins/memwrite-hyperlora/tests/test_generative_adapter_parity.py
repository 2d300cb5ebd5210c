"""Generative Adapter beside the authors' code: outer products, LoRA weights and logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hyper_memories import adapter
from memwrite_hyperlora.normalize import normalized
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from memwrite import Memory, MemoryState, Tokens

DATA = Path(__file__).with_name("data") / "generative-adapter"
THEIRS = load_file(DATA / "reference.safetensors")
ADAPTER = load_file(DATA / "adapter_model.safetensors")
SIZES = {
    "vocab_size": 258, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
}  # fmt: skip
MODULES = {"o": "self_attn.o_proj", "down": "mlp.down_proj"}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def weight(layer: int, name: str, part: str) -> Tensor:
    prefix = f"base_model.model.model.layers.{layer}.base_layer.{MODULES[name]}.fastlora_"
    return ADAPTER[f"{prefix}{part}.weight"]


def memory(norm: str) -> Memory:
    """A memory with the authors' weights."""
    made = adapter(
        {"rank": 4, "key_width": 6, "window": 8, "heads": 2},
        {"projections": list(MODULES), "alpha": 64, "norm": norm, "svd_rank": 4},
        dtype="float32", sizes=SIZES,
    )  # fmt: skip
    base = {n.removeprefix("base."): t for n, t in THEIRS.items() if n.startswith("base.")}
    missing = made.model.load_state_dict(base, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    assert not missing.unexpected_keys
    with torch.no_grad():
        for layer in range(2):
            maps = made.reader.layers[str(layer)]
            for head, name in enumerate(MODULES):
                made.writer.norm[layer, head] = weight(layer, name, "hidden_state_norm")
                made.writer.keys[layer, head] = weight(layer, name, "A2")
                made.writer.values[layer, head] = weight(layer, name, "A3")
                maps.A[name].copy_(weight(layer, name, "A1"))
                maps.B[name].copy_(weight(layer, name, "B"))
    return made


@torch.no_grad()
def written(made: Memory) -> MemoryState:
    return made.write(Tokens.from_rows([THEIRS["context"].flatten().tolist()])).state


def test_a_state_is_the_sum_of_their_outer_products() -> None:
    state = written(memory("frobenius"))
    for layer in range(2):
        for head, module in enumerate(MODULES.values()):
            theirs = THEIRS[f"outer.model.layers.{layer}.{module}"]
            assert_close(state["S"][:, layer, head], theirs.mT, **CLOSE)


@pytest.mark.parametrize("norm", ["frobenius", "svd"])
@torch.no_grad()
def test_corrections_are_theirs(norm: str) -> None:
    made = memory(norm)
    state = normalized(written(made)["S"], norm, 4)
    for layer in range(2):
        for head, (name, module) in enumerate(MODULES.items()):
            inner = state[:, layer, head] @ made.reader.layers[str(layer)].A[name]
            assert_close(inner, THEIRS[f"{norm}.A.model.layers.{layer}.{module}"], **CLOSE)


@pytest.mark.parametrize("norm", ["frobenius", "spectral", "svd"])
@torch.no_grad()
def test_logits_are_theirs(norm: str) -> None:
    made = memory(norm)
    query = Tokens.from_rows(THEIRS["query"].tolist())
    logits = made.read(written(made), query).logits
    assert_close(logits, THEIRS[f"{norm}.logits"], **CLOSE)
    assert float((logits - made.read(made.writer.init(1), query).logits).abs().max()) > 0.01
