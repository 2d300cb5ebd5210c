"""A model and a tokenizer that are loaded already, handed in: the same numbers, however often it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from memwrite import Memory, backbone_of
from memwrite.backbones.sources import model_folder
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import ConfigError, StorageError

PARTS = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MEMWRITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        path = tmp_path_factory.mktemp("model") / "tiny.gguf"
        return model_folder(str(gguf_files.write(path, gguf_files.llama())))


def loaded(folder: str, **changes: Any) -> tuple[PreTrainedModel, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes)
    return model, AutoTokenizer.from_pretrained(folder)


def test_it_is_the_memory_of_the_folder(folder: str, tmp_path: Path) -> None:
    model, tokenizer = loaded(folder)
    memory = Memory.from_config(PARTS, backbone=backbone_of(model, tokenizer))
    of_folder = Memory.from_config({"backbone": {"path": folder}, **PARTS})
    assert memory.model is model
    assert memory.backbone.fingerprint == of_folder.backbone.fingerprint
    state = memory.write("he said 12").state
    asked = memory.ask(state, "he", max_new_tokens=5)
    assert asked == of_folder.ask(of_folder.write("he said 12").state, "he", max_new_tokens=5)
    memory.save(state, tmp_path / "a.st")
    again, same = Memory.load(tmp_path / "a.st")
    assert again.ask(same, "he", max_new_tokens=5) == asked
    memory.save_run(tmp_path / "run")
    assert not (tmp_path / "run" / "backbone").exists()
    assert Memory.from_config(tmp_path / "run").backbone.fingerprint == memory.backbone.fingerprint


class Adds:
    """A change of the queries by one, which counts how often it is asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, hidden: Tensor) -> dict[str, Any]:
        self.calls += 1
        return {"q": hidden.new_ones(())}

    def rows(self, index: Tensor) -> Adds:
        return self


def test_a_model_that_is_wrapped_twice_is_hooked_once(folder: str) -> None:
    """Else every correction would count twice, and every layer be observed twice."""
    model, tokenizer = loaded(folder)
    first = backbone_of(model, tokenizer)
    ids = torch.tensor([[5, 70, 71, 8]])

    def run(backbone: TransformersBackbone) -> tuple[Tensor, int, list[int]]:
        seen: list[int] = []
        adds = Adds()
        with torch.no_grad():
            changed = backbone.forward(backbone.embed(ids), corrections={0: adds, 1: adds})
            backbone.forward(backbone.embed(ids), observe=lambda a: seen.append(a.layer))
        return changed.hidden, adds.calls, seen

    once = run(first)
    second = backbone_of(model, tokenizer)
    for backbone in (first, second):
        hidden, calls, seen = run(backbone)
        torch.testing.assert_close(hidden, once[0], rtol=0, atol=0)
        assert (calls, seen) == (2, [0, 1])
    assert second.info.double_backward is first.info.double_backward is False
    assert second.fingerprint == first.fingerprint


def test_one_of_no_folder_is_saved_with_a_run_and_named_with_a_state(
    folder: str, tmp_path: Path
) -> None:
    model = gguf_files.llama(seed=3)
    memory = Memory.from_config(PARTS, backbone=backbone_of(model, loaded(folder)[1]))
    memory.save_run(tmp_path / "run")
    state = memory.write("he said 12").state
    memory.save(state, tmp_path / "a.st")
    assert Memory.from_config(tmp_path / "run").backbone.fingerprint == memory.backbone.fingerprint
    with pytest.raises(StorageError, match="--backbone"):
        Memory.load(tmp_path / "a.st")
    again, _ = Memory.load(tmp_path / "a.st", backbone=str(tmp_path / "run"))
    assert again.backbone.fingerprint == memory.backbone.fingerprint


def test_what_cannot_be_used_is_one_sentence(folder: str) -> None:
    _, tokenizer = loaded(folder)
    with pytest.raises(ConfigError, match="tokens but the model only"):
        backbone_of(gguf_files.llama(vocab_size=100), tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end-of-text"):
        backbone_of(gguf_files.llama(), tokenizer)
