"""Released checkpoints become run folders: the authors' files, made here in their format with small random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from memwrite import Memory, Tokens
from memwrite.cli.main import main

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 32}
GRADMEM = {
    **SIZES,
    "base_model": "llama",
    "pretrained_model": None,
    "tokenizer_path": "./tokenizers/kv_alphabet_62/",
    "data_path": "./data/N8-K2V2-V62_1M",
    "n_mem_tokens": 4,
    "n_ctrl_tokens": 1,
    "K": 2,
    "inner_lr": 0.3,
    "learning_rate": 1e-4,
    "grad_mode": "second",
    "last_K_second_order": None,
    "inner_clip_value": None,
    "inner_clip_norm": 0.5,
    "mem_proj_mode": "per_sample",
    "use_mem_proj": True,
    "use_write_head": True,
    "use_adam": False,
    "use_write_lora": False,
    "add_inner_loss_to_outer": True,
    "inner_loss_weight": None,
}
RMT = {
    **SIZES,
    "base_model": "gpt2",
    "pretrained_model": None,
    "n_mem_tokens": 4,
    "n_ctrl_tokens": 1,
    "K": 2,
    "mem_proj_mode": "proj_rw",
    "use_mem_proj": True,
    "use_write_head": False,
    "use_mem_residual": True,
    "use_reconstruction_loss": False,
}


def weights(kind: str) -> dict[str, Tensor]:
    """By the official names; tied output embeddings are left out, as safetensors has them."""
    if kind == "gradmem":
        described = AutoConfig.for_model(
            "llama",
            vocab_size=70,
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
        extra = {"write_head.weight": (70, 32), "mem_proj.weight": (32, 32), "mem_proj.bias": (32,)}
    else:
        described = AutoConfig.for_model("gpt2", vocab_size=70, **SIZES)
        extra = {
            f"{name}.{part}": shape
            for name in ("mem_proj", "read_mem_proj", "mem_residual_ln")
            for part, shape in (("weight", (32, 32)), ("bias", (32,)))
        }
        extra["mem_residual_ln.weight"] = (32,)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(described)
    found = {f"model.{n}": t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    shapes = {
        "mem": (4, 32),
        **dict.fromkeys(("write_st", "write_end", "read_st", "read_end"), (1, 32)),
    }
    shapes |= extra
    return found | {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def folder(path: Path, kind: str, **changes: Any) -> Path:
    path.mkdir()
    arguments = {**(GRADMEM if kind == "gradmem" else RMT), **changes}
    (path / "config.json").write_text(json.dumps({"cli_args": arguments}))
    safetensors.torch.save_file(weights(kind), path / "model.safetensors", {"format": "pt"})
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize("kind", ["gradmem", "rmt"])
def test_a_checkpoint_becomes_a_run(kind: str, tmp_path: Path) -> None:
    """Every weight is where it belongs, every setting is kept, and the run writes and reads."""
    done = run("import", kind, folder(tmp_path / "official", kind), "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    memory = Memory.from_config(tmp_path / "run")
    official = weights(kind)
    own = memory.state_dict()
    slots = own["writer.fast.slots" if kind == "gradmem" else "writer.slots"]
    assert torch.equal(slots, official["mem"])
    assert torch.equal(own["writer.controls.read_end"], official["read_end"])
    for name, tensor in official.items():
        if name.startswith("model."):
            assert torch.equal(own[name], tensor), name
    params = memory.config.writer.params
    assert (params["slots"], params["steps"], params["control_tokens"]) == (4, 2, 1)
    if kind == "gradmem":
        assert torch.equal(own["writer.head"], official["write_head.weight"])
        assert (params["lr"], params["clip_norm"], params["projection"]) == (
            0.3,
            0.5,
            "per-example",
        )
        assert params["reconstruction_weight"] == 1.0
        assert memory.model.config.rope_parameters["rope_theta"] == 500000.0
        assert run("eval", tmp_path / "run", "--examples", 2, "--json").exit_code == 0
    else:
        assert torch.equal(own["writer.norm.weight"], official["mem_residual_ln.weight"])
        assert (params["projection"], params["residual"]) == ("read-write", True)
    tokenizer = memory.backbone.tokenizer
    tokens = Tokens.from_rows([tokenizer.encode("!ab:cd!|")])
    state = memory.write(tokens).state
    query = Tokens.from_rows([tokenizer.encode("?!ab:")])
    assert memory.read(state, query).logits.isfinite().all()


def test_a_models_own_config_will_do(tmp_path: Path) -> None:
    """As transformers saves it in a checkpoint, with the language model's nested in it."""
    path = folder(tmp_path / "official", "rmt")
    base = AutoConfig.for_model("gpt2", vocab_size=70, **SIZES).to_dict()
    data = {**RMT, "model_type": "rmt_2segm", "base_config": base}
    (path / "config.json").write_text(json.dumps(data))
    assert run("import", "rmt", path, "--out", tmp_path / "run").exit_code == 0


def test_a_pretrained_base_is_asked_for(tmp_path: Path) -> None:
    path = folder(tmp_path / "official", "rmt", pretrained_model="gpt2", base_model=None)
    done = run("import", "rmt", path, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "'gpt2'" in done.output
    assert "--base" in done.output
    (tmp_path / "base").mkdir()
    AutoConfig.for_model("gpt2", vocab_size=70, **SIZES).save_pretrained(tmp_path / "base")
    done = run("import", "rmt", path, "--out", tmp_path / "run", "--base", tmp_path / "base")
    assert done.exit_code == 0, done.output


def damaged(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        found = weights("gradmem")
        change(found)
        safetensors.torch.save_file(found, path / "model.safetensors")

    return rewrite


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "config.json"),
        (lambda path: (path / "config.json").write_text("["), "not JSON"),
        (lambda path: (path / "config.json").write_text("{}"), "base model"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors"),
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 40), "truncated or damaged"),
        (damaged(lambda found: found.pop("mem")), "lacks the weight"),
        (damaged(lambda found: found.update(mem=torch.zeros(3, 32))), "shape"),
        (damaged(lambda found: found.update(more=torch.zeros(3))), "'writer.more'"),
    ],
)
def test_damaged_checkpoints_are_one_sentence(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    """Exit code 2, and no run folder."""
    path = folder(tmp_path / "official", "gradmem")
    damage(path)
    done = run("import", "gradmem", path, "--out", tmp_path / "run")
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert done.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["use_adam", "use_write_lora"])
def test_what_cannot_be_done_here_is_named(setting: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "official", "gradmem", **{setting: True})
    done = run("import", "gradmem", path, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert setting in done.output


def test_an_unknown_importer_and_a_run_that_is_there(tmp_path: Path) -> None:
    path = folder(tmp_path / "official", "rmt")
    done = run("import", "gradmen", path, "--out", tmp_path / "run")
    assert (done.exit_code, "did you mean 'gradmem'" in done.output) == (2, True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("kept")
    done = run("import", "rmt", path, "--out", tmp_path / "run")
    assert (done.exit_code, "already holds a run" in done.output) == (2, True)
    assert (tmp_path / "run" / "config.yaml").read_text() == "kept"
