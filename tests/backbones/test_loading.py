"""Backbones that cannot be used: one sentence each, nothing unpickled, nothing filled with random numbers."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support import MODELS

from memwrite import Memory
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError, MemwriteError


def model(family: str, tied: bool = False, **changes: Any) -> dict[str, Any]:
    params = {**MODELS[family]["params"], "tie_word_embeddings": tied}
    return {"type": family, "params": params, **changes}


def load(**described: Any) -> TransformersBackbone:
    return load_backbone(BackboneConfig(**described))


UNUSABLE: dict[str, dict[str, Any]] = {
    "backbone.type": {"type": "no-such-type"},
    "t5": {"type": "t5"},
    "vit": {"type": "vit"},
    "Bert": {"type": "bert"},
    "attention layers of xLSTM": {
        "type": "xlstm",
        "params": {"hidden_size": 32, "num_blocks": 1, "num_heads": 4},
    },
    "did you mean 'n_embd'": {"type": "gpt2", "params": {"n_embed": 32}},
    "n_embd|embed_dim": {"type": "gpt2", "params": {"n_embd": 30, "n_head": 4}},
    "n_head|modulo|heads": {"type": "gpt2", "params": {"n_embd": 32, "n_head": 0}},
    "attention heads": {"type": "llama", "params": {"hidden_size": 30, "num_attention_heads": 4}},
    "hidden_size.*int": {"type": "llama", "params": {"hidden_size": "wide"}},
    "hidden size|negative": {"type": "llama", "params": {"hidden_size": -4}},
    "num_key_value_heads|key": {
        "type": "llama",
        "params": {**MODELS["llama"]["params"], "num_key_value_heads": 3},
    },
    "layers": {"type": "llama", "params": {**MODELS["llama"]["params"], "num_hidden_layers": 0}},
    "258 tokens": {"type": "gpt2", "params": {**MODELS["gpt2"]["params"], "vocab_size": 9}},
    "chunked_attention": {
        "type": "qwen3",
        "params": {**MODELS["llama"]["params"], "layer_types": ["chunked_attention"] * 2},
    },
    r"biased by distance .ALiBi.": {
        "type": "bloom",
        "params": {"hidden_size": 32, "n_layer": 1, "n_head": 4},
    },
    "no tokenizer": {"type": "gpt2", "tokenizer": "/no/such/folder"},
    "backbone.path": {"path": "/no/such/folder"},
    "no numbers": {
        **MODELS["gpt2"],
        "params": {**MODELS["gpt2"]["params"], "layer_norm_epsilon": -1e9},
    },
    "device 'abacus'": {**MODELS["gpt2"], "device": "abacus"},
    "device.*'mps'": {**MODELS["gpt2"], "device": "mps"},
    "device.*'xpu'": {**MODELS["gpt2"], "device": "xpu"},
    "device.*'meta'": {**MODELS["gpt2"], "device": "meta"},
}


@pytest.mark.parametrize("message", UNUSABLE)
def test_what_cannot_be_built_is_one_sentence(message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(**UNUSABLE[message])
    assert "\n" not in str(caught.value)


def test_a_family_with_another_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits would be other ones."""
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def halved(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", halved)
    with pytest.raises(ConfigError, match="'llama' computes its logits in a way"):
        load(**MODELS["llama"])


def test_a_missing_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:3"):
        with pytest.raises(ConfigError, match=rf"'{device}'.*no CUDA device.*use cpu"):
            load(**MODELS["gpt2"], device=device)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    load(**MODELS["llama"]).save(folder, torch.float32)
    return folder


def reconfigured(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**data, **changes}))

    return change


def reweighted(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


NORM = "model.layers.0.input_layernorm.weight"
DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights cut short": cut,
    "weights empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "a weight lacking": reweighted(lambda weights: weights.pop(NORM)),
    "a weight of another shape": reweighted(lambda w: w.update({NORM: torch.zeros(9)})),
    "config not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config not UTF-8": lambda folder: (folder / "config.json").write_bytes(b"\xff{}"),
    "unknown type": reconfigured(model_type="no-such-type"),
    "no type": reconfigured(model_type=None),
    "more layers": reconfigured(num_hidden_layers=3),
    "other sizes": reconfigured(intermediate_size=40),
    "sizes of words": reconfigured(hidden_size="wide"),
    "sizes that do not divide": reconfigured(num_attention_heads=5, head_dim=None),
    "broken tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "empty tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_one_sentence(sound: Path, tmp_path: Path, damage: str) -> None:
    """And never random numbers in the place of weights that are not there."""
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    DAMAGE[damage](folder)
    with pytest.raises(ConfigError) as caught:
        load(path=str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["honest", "trap", "plain"])
def test_pickled_weights_are_not_opened(sound: Path, tmp_path: Path, form: str) -> None:
    """Nothing is unpickled: a folder without safetensors is refused, in one sentence."""
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(sound, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    if form == "plain":
        file.write_bytes(pickle.dumps(Trap(mark)))
    else:
        torch.save(weights if form == "honest" else {"a": Trap(mark)}, file)
    with pytest.raises(ConfigError) as caught:
        load(path=str(folder))
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_run_folders_that_cannot_be_opened(tmp_path: Path) -> None:
    """Without a config, or with damaged weights of writer and reader."""
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match=r"no configuration file at .*config\.yaml"):
        Memory.from_config(tmp_path / "bare")
    Memory.from_config({"backbone": model("gpt2")}).save_run(tmp_path / "run")
    for damaged in (b"", b"{}", (1 << 40).to_bytes(8, "little") + b"{}"):
        (tmp_path / "run" / "weights.safetensors").write_bytes(damaged)
        with pytest.raises(MemwriteError, match=r"weights\.safetensors"):
            Memory.from_config(tmp_path / "run")


@pytest.mark.parametrize(
    "override",
    ["params.max_position_embeddings=128", "tokenizer=characters", "ngram=2"],
)
def test_the_model_in_a_run_folder_is_no_other(tmp_path: Path, override: str) -> None:
    """An override that would have no effect is refused; those of how it is used are taken."""
    backbone = {**model("llama"), "trainable": True}
    Memory.from_config({"backbone": backbone}).save_run(tmp_path / "run")
    name = re.split("[.=]", override)[0]
    with pytest.raises(
        ConfigError, match=rf"backbone\.{name} cannot be changed: .*training\.start"
    ):
        Memory.from_config(tmp_path / "run", [f"backbone.{override}"])
    same = Memory.from_config(tmp_path / "run", ["backbone.dtype=float64", "seed=3"])
    assert same.backbone.info.dtype == torch.float64


def test_a_run_cannot_be_saved_onto_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    memory = Memory.from_config({"backbone": model("gpt2")})
    for target in ("file", "file/run"):
        with pytest.raises(MemwriteError):
            memory.save_run(tmp_path / target)
    assert (tmp_path / "file").read_text() == "kept"


def test_threads_build_and_load_the_models_they_ask_for(tmp_path: Path) -> None:
    """One seed is one model, also while other threads draw another."""

    def built(seed: int) -> Memory:
        parts = {"writer": {"name": "gradient"}, "reader": {"name": "prefix"}}
        return Memory.from_config({"backbone": MODELS["llama"], **parts, "seed": seed})

    alone = [built(seed) for seed in range(2)]
    alone[0].save(alone[0].write("a").state, tmp_path / "a.st")
    with ThreadPoolExecutor(8) as pool:
        made = [*pool.map(built, [0, 1] * 8)]
        loaded = [*pool.map(Memory.load, [tmp_path / "a.st"] * 8)]
    for number, memory in enumerate(made):
        assert memory.backbone.fingerprint == alone[number % 2].backbone.fingerprint
        assert memory.writer_fingerprint == alone[number % 2].writer_fingerprint
    assert all(m.backbone.fingerprint == alone[0].backbone.fingerprint for m, _ in loaded)


CODE = "strange.py"
MAPPED = {
    "AutoConfig": "strange.StrangeConfig",
    "AutoModelForCausalLM": "strange.StrangeForCausalLM",
}
STRANGERS: dict[str, Callable[[Path], object]] = {
    "unknown type": reconfigured(model_type="strange", auto_map=MAPPED),
    "known type": reconfigured(model_type="llama", auto_map=MAPPED),
    "tokenizer": lambda folder: (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["strange.Strange", None]}}
        )
    ),
    "attention": reconfigured(attn_implementation="someone/kernel"),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_code_that_comes_with_a_model_is_never_run(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Nor does anything ask on standard input; a model of a known family loads without it."""
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(sound, folder)
    STRANGERS[what](folder)
    (folder / CODE).write_text(
        f"open({str(mark)!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizer as Strange\n"
        "class StrangeConfig(LlamaConfig):\n    model_type = 'strange'\n"
        "class StrangeForCausalLM(LlamaForCausalLM):\n    config_class = StrangeConfig\n"
    )

    def asked(*_: object) -> str:
        raise AssertionError("asked on standard input")

    monkeypatch.setattr("builtins.input", asked)
    if what == "known type":
        load(path=str(folder))
    else:
        with pytest.raises(ConfigError, match="memwrite never runs code") as caught:
            load(path=str(folder))
        assert "\n" not in str(caught.value)
        assert "trust_remote_code" not in str(caught.value)
    assert not mark.exists()
