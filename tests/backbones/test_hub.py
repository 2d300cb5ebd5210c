"""Hub ids: from the cache without a look at the network, and one quick sentence where there is neither."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gguf_files
import pytest
from huggingface_hub import constants
from transformers import PreTrainedTokenizerFast

from memwrite import Memory
from memwrite.backbones import hub
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.tokenizers import character_tokenizer
from memwrite.config import BackboneConfig
from memwrite.errors import ConfigError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one model in it."""
    revision = "0123456789012345678901234567890123456789"
    model = tmp_path / "models--someone--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(revision)
    folder = model / "snapshots" / revision
    tokenizer = character_tokenizer()
    gguf_files.llama(bos_token_id=1, eos_token_id=2).save_pretrained(folder)
    assert isinstance(tokenizer.wrapped, PreTrainedTokenizerFast)
    tokenizer.save(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return folder


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the hub, which is unreachable, was asked for."""
    names: list[str] = []

    def unreachable(self: Any, name: str, **_: Any) -> None:
        names.append(name)
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    return names


def test_a_cached_model_needs_no_network(cache: Path, tmp_path: Path, asked: list[str]) -> None:
    parts = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    memory = Memory.from_config({"backbone": {"path": "someone/tiny"}, **parts})
    memory.save(memory.write("abc").state, tmp_path / "a.st")
    again, _ = Memory.load(tmp_path / "a.st")
    assert again.backbone.fingerprint == memory.backbone.fingerprint
    assert again.config.backbone.path == "someone/tiny"
    assert asked == []


@pytest.mark.parametrize("held", ["nothing", "no weights", "a shard lacking"])
def test_what_is_not_all_there_is_asked_for_once(
    cache: Path, asked: list[str], held: str, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "someone/other" if held == "nothing" else "someone/tiny"
    if held == "no weights":
        (cache / "model.safetensors").unlink()
    if held == "a shard lacking":
        (cache / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
        )
    start = time.monotonic()
    with pytest.raises(ConfigError, match=rf"'{name}'.*Name or service not known") as caught:
        load_backbone(BackboneConfig(path=name))
    assert "\n" not in str(caught.value)
    assert asked == [name]
    assert time.monotonic() - start < 5
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("path", ["/no/such/folder", "a/b/c", "what is this", "smollm3-135m!"])
def test_what_is_no_hub_id_is_not_asked_for(path: str, asked: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"no folder, GGUF file or hub id .*smollm2-135m"):
        load_backbone(BackboneConfig(path=path))
    assert asked == []
