"""LoRAs in peft's format: the numbers are peft's, and what is more than a LoRA is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from memwrite import Memory
from memwrite.backbones.adapters import read
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError

DATA = Path(__file__).parent / "data" / "peft"
PARTS = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}


def described(adapter: Path) -> BackboneConfig:
    model = adapter.parent / "model" if adapter.parent.parent == DATA else DATA / "llama" / "model"
    return BackboneConfig(path=str(model), adapter=str(adapter))


@pytest.mark.parametrize("name", ["llama/plain", "llama/patterns", "gpt2/plain"])
def test_logits_are_pefts(name: str) -> None:
    folder = DATA / name
    expected = safetensors.torch.load_file(folder / "expected.safetensors")
    backbone = load_backbone(described(folder))
    with torch.no_grad():
        logits = backbone.model(expected["ids"]).logits
        bare = load_backbone(replace(described(folder), adapter=None)).model(expected["ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)
    assert (bare - logits).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llama/plain", "gpt2/plain"])
def test_what_is_saved_is_what_peft_saves(name: str, tmp_path: Path) -> None:
    """The same tensors under the same names, and no setting of another value."""
    folder = DATA / name
    adapter = read(folder)
    adapter.save(tmp_path)
    again = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    theirs = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in again)
    own, other = (json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path, folder))
    del own["base_model_name_or_path"]
    assert sorted(other.pop("target_modules")) == own.pop("target_modules")
    assert own == {name: other[name] for name in own}


def test_a_memory_of_a_corrected_model_knows_it(tmp_path: Path) -> None:
    """By its fingerprint, and from its state file in another place."""
    folder = DATA / "llama" / "plain"
    config = {"backbone": {"path": str(DATA / "llama" / "model"), "adapter": str(folder)}, **PARTS}
    memory = Memory.from_config(config)
    plain = Memory.from_config({**config, "backbone": {"path": config["backbone"]["path"]}})
    assert memory.backbone.fingerprint != plain.backbone.fingerprint
    state = memory.write("one two").state
    memory.save(state, tmp_path / "a.st")
    again, same = Memory.load(tmp_path / "a.st")
    asked = memory.ask(state, "three", max_new_tokens=4)
    assert again.ask(same, "three", max_new_tokens=4) == asked
    assert again.backbone.fingerprint == memory.backbone.fingerprint


def settings(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**data, **changes}))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path)

    return rewrite


def lengthened(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    tensors[name] = torch.cat([tensors[name], tensors[name]], 1)


BROKEN: dict[str, Callable[[Path], object]] = {
    "is a PREFIX_TUNING": settings(peft_type="PREFIX_TUNING"),
    "use_dora to True": settings(use_dora=True),
    "modules_to_save to": settings(modules_to_save=["lm_head"]),
    "bias to 'all'": settings(bias="all"),
    "a_new_thing to 3": settings(a_new_thing=3),
    "init_lora_weights='pissa'": settings(init_lora_weights="pissa"),
    "alphas should be numbers": settings(lora_alpha="many"),
    "should be a JSON object": lambda folder: (folder / "adapter_config.json").write_text("[1"),
    "holds no adapter_config.json": lambda folder: (folder / "adapter_config.json").unlink(),
    "holds no adapter_model.safetensors": lambda f: (f / "adapter_model.safetensors").unlink(),
    "truncated or damaged": lambda f: (f / "adapter_model.safetensors").write_bytes(b"\0" * 30),
    "no linear layer of this model": weights(
        lambda t: t.update({f"base_model.model.other.lora_{x}.weight": torch.ones(1, 1) for x in "AB"})
    ),
    "which no plain LoRA has": weights(lambda t: t.update({"x.lora_magnitude": torch.ones(1)})),
    "only one of two factors": weights(lambda t: t.pop(next(iter(t)))),
    "made for another model": weights(lengthened),
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_no_lora_of_this_model_is_one_sentence(message: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(DATA / "llama" / "plain", folder)
    BROKEN[message](folder)
    with pytest.raises(ConfigError, match=message) as refusal:
        load_backbone(described(folder))
    assert "\n" not in str(refusal.value)


def test_an_adapter_needs_a_model() -> None:
    with pytest.raises(ConfigError, match=r"backbone.adapter corrects a model that is there"):
        BackboneConfig(type="llama", adapter="x")
