"""Backbones from scratch and from folders: fingerprints, tokenizers, and what cannot be built."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support import MODELS, Build

from memwrite import Memory, Tokens
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError, StorageError
from memwrite.loading import load_backbone
from memwrite.tokenizer import ByteCodec, load_codec, train_bpe


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", MODELS)
def test_a_saved_folder_is_the_same_backbone(family: str, tmp_path: Path, tied: bool) -> None:
    """As a run folder and as a plain transformers folder; one changed weight is another backbone."""
    params = {**MODELS[family]["params"], "tie_word_embeddings": tied}
    model = {"type": family, "params": params, "dtype": "float64", "trainable": True}
    memory = Memory.from_config({"backbone": model})
    memory.save_run(tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "backbone"):
        again = load_backbone(BackboneConfig(path=str(folder), dtype="float64"))
        ids = torch.arange(5)[None]
        found, expected = (
            b.logits(b.forward(b.embed(ids)).hidden) for b in (again, memory.backbone)
        )
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    other = load_backbone(BackboneConfig(path=str(tmp_path / "run")))
    same = load_backbone(BackboneConfig(path=str(tmp_path / "run" / "backbone")))
    assert other.fingerprint == same.fingerprint
    same = load_backbone(BackboneConfig(path=str(tmp_path / "run")))
    next(iter(same.model.parameters())).data[0, 0] += 1e-3
    assert other.fingerprint != same.fingerprint


def test_a_run_folder_brings_back_the_writers_weights(build: Build, tmp_path: Path) -> None:
    memory = build("gradient", "prefix", {"slots": 2, "learned_lr": True, "order": "none"})
    memory.writer.slots.data.fill_(0.7)
    memory.save_run(tmp_path / "run")
    again = Memory.from_config(tmp_path / "run")
    assert torch.equal(again.writer.slots, memory.writer.slots)
    assert again.config.writer == memory.config.writer
    fewer = ["writer.params.slots=1"]
    with pytest.raises(StorageError, match="other weights"):
        Memory.from_config(tmp_path / "run", fewer)


def test_built_weights_depend_on_the_seed_alone(build: Build) -> None:
    config = BackboneConfig(**MODELS["gpt2"])
    torch.manual_seed(1)
    one = load_backbone(config, seed=5)
    torch.manual_seed(2)
    assert load_backbone(config, seed=5).fingerprint == one.fingerprint
    assert load_backbone(config, seed=6).fingerprint != one.fingerprint


def test_bpe_round_trips_any_text_and_keeps_special_tokens_apart(tmp_path: Path) -> None:
    codec = train_bpe(["the quick brown fox " * 50], 300)
    codec.save(tmp_path)
    for text in ("the fox", "žluťoučký 🦊\n\ttab  two", "<|end|> is text <|start|>"):
        for one in (codec, load_codec(tmp_path), ByteCodec()):
            ids = one.encode(text)
            assert one.decode(ids) == text
            assert not {one.start, one.end} & set(ids)


def test_a_folder_with_a_tokenizer_brings_it_along(tmp_path: Path) -> None:
    train_bpe(["abab" * 50], 260).save(tmp_path / "tokenizer")
    model: dict[str, Any] = {**MODELS["gpt2"], "tokenizer": str(tmp_path / "tokenizer")}
    memory = Memory.from_config({"backbone": {**model, "trainable": True}})
    memory.save_run(tmp_path / "run")
    again = load_backbone(BackboneConfig(path=str(tmp_path / "run")))
    assert again.codec.encode("abab") == memory.backbone.codec.encode("abab") != list(b"abab")
    assert again.info.vocab_size == 260


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "nothing"}, "backbone.type 'nothing'"),
        ({"params": {"n_layers": 2}}, "did you mean 'n_layer'"),
        ({"params": {"n_embd": 30, "n_head": 4}}, "n_embd|divisible|embed_dim|heads"),
        ({"params": {"vocab_size": 100}}, "258 tokens but the model only 100"),
        ({"type": "mistral", "params": {}}, "sliding window"),
        ({"device": "tpu9"}, "tpu9"),
        ({"tokenizer": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = {**MODELS["gpt2"], **changes}
    if changes.get("type") == "mistral":
        model["params"] = {**small, "num_key_value_heads": 2, "intermediate_size": 16}
    with pytest.raises(ConfigError, match=message):
        load_backbone(BackboneConfig(**model))


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"')
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"backbone\.path"):
            load_backbone(BackboneConfig(path=str(path)))


def test_a_folder_that_lacks_weights_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    Memory.from_config({"backbone": {**MODELS["gpt2"], "trainable": True}}).save_run(tmp_path)
    file = tmp_path / "backbone" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    name = next(name for name in weights if "mlp" in name)
    safetensors.torch.save_file({k: v for k, v in weights.items() if k != name}, file)
    with pytest.raises(ConfigError, match="lacks the weights"):
        load_backbone(BackboneConfig(path=str(tmp_path)))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="no model that can be loaded"):
        load_backbone(BackboneConfig(path=str(tmp_path)))


def test_eager_is_differentiable_twice_and_sdpa_is_not(build: Build) -> None:
    assert build(attention="eager").backbone.info.double_backward
    assert not build(attention="sdpa").backbone.info.double_backward


def test_the_core_imports_no_plugin_and_the_package_no_torch() -> None:
    core = Path(sys.modules["memwrite"].__file__ or "").parent
    for path in core.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("memwrite_") for name in names), path
    code = "import sys, memwrite; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_writes_in_bfloat16_keep_float32_states() -> None:
    config = {
        "backbone": {**MODELS["llama"], "dtype": "bfloat16"},
        "writer": {"name": "gradient", "params": {"slots": 2}},
        "reader": {"name": "prefix"},
    }
    memory = Memory.from_config(config)
    state = memory.write(Tokens.from_rows([[1, 2, 3]])).state
    assert state["memory"].dtype == torch.float32
    assert memory.read(state, Tokens.from_rows([[4]])).logits.dtype == torch.float32
