"""Importers, on folders that the authors' code has saved, and Doc-to-LoRA beside the authors' code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hyper_memories import made
from memwrite_hyperlora import released_adapter, released_hypernetwork
from memwrite_hyperlora.stream import received_up_to_the_norm
from safetensors.torch import load_file
from test_generative_adapter_parity import SIZES
from torch import Tensor
from torch.testing import assert_close

from memwrite import Memory, Tokens
from memwrite.convert import assemble
from memwrite.errors import ConfigError, StorageError

DATA = Path(__file__).with_name("data")
ADAPTER, CHECKPOINT = DATA / "generative-adapter", DATA / "doc-to-lora" / "checkpoint"
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def language_model(theirs: dict[str, Tensor], folder: Path) -> Path:
    """Save their tiny Llama, with a tokenizer of bytes."""
    parts = {"name": "no-memory"}, {"name": "no-memory"}
    memory = made(*parts, dtype="float32", sizes=SIZES, noise=0)
    base = {n.removeprefix("base."): t for n, t in theirs.items() if n.startswith("base.")}
    memory.model.load_state_dict(base, strict=False)
    memory.backbone.save(folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def hyper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Memory, dict[str, Tensor]]:
    theirs = load_file(DATA / "doc-to-lora" / "reference.safetensors")
    base = language_model(theirs, tmp_path_factory.mktemp("hyper") / "base")
    return assemble(released_hypernetwork.load(CHECKPOINT, base), "checkpoint"), theirs


@torch.no_grad()
def read(memory: Memory, theirs: dict[str, Tensor], pieces: Tensor) -> tuple[Any, Tensor]:
    """Write pieces, one after the other, and ask their query."""
    state = memory.writer.init(1)
    for piece in pieces:
        state = memory.write(Tokens.from_rows([piece.tolist()]), state).state
    return state, memory.read(state, Tokens.from_rows(theirs["query"].tolist())).logits


# ---- Generative Adapter -------------------------------------------------------------------------


def test_an_imported_adapter_says_what_theirs_says(tmp_path: Path) -> None:
    theirs = load_file(ADAPTER / "reference.safetensors")
    base = language_model(theirs, tmp_path / "base")
    memory = assemble(released_adapter.load(ADAPTER, base), "adapter")
    _, logits = read(memory, theirs, theirs["context"].flatten()[None])
    assert_close(logits, theirs["frobenius.logits"], **CLOSE)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("fastlora_arch", "asbb", "fastlora_arch to 'asbb'"),
        ("fastlora_merge", "pre-norm-mean", "fastlora_merge to 'pre-norm-mean'"),
        ("fastlora_norm", "softmax", "fastlora_norm to 'softmax'"),
        ("fastlora_new", 1, "fastlora_new to 1, which is not known"),
        ("peft_type", "LORA", "not 'FASTLORA'"),
    ],
)
def test_settings_of_an_adapter_that_are_not_known_are_refused(
    tmp_path: Path, name: str, value: Any, said: str
) -> None:
    folder = shutil.copytree(ADAPTER, tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, name: value}))
    with pytest.raises(ConfigError, match=said):
        released_adapter.load(folder, tmp_path)


# ---- Doc-to-LoRA --------------------------------------------------------------------------------


@torch.no_grad()
def test_features_are_theirs(hyper: tuple[Memory, dict[str, Tensor]]) -> None:
    memory, theirs = hyper
    assert_close(
        received_up_to_the_norm(memory.backbone, theirs["context"]), theirs["features"], **CLOSE
    )


def test_weights_are_theirs(hyper: tuple[Memory, dict[str, Tensor]]) -> None:
    memory, theirs = hyper
    rank = memory.writer.config.rank
    states = [read(memory, theirs, chunk[None])[0] for chunk in theirs["context"]]
    for name in ("down", "q"):
        down, up = (theirs[f"{side}.{name}_proj"] for side in "AB")
        for number, state in enumerate(states):
            own = slice(number * rank, (number + 1) * rank)
            assert_close(state[f"A.{name}"][:, :, rank : 2 * rank], down[:, :, own], **CLOSE)
            assert_close(state[f"B.{name}"][..., rank : 2 * rank].mT, up[:, :, own], **CLOSE)
            # They have the bias behind the chunks.
            assert_close(state[f"A.{name}"][:, :, :rank], down[:, :, -rank:], **CLOSE)
            assert_close(state[f"B.{name}"][..., :rank].mT, up[:, :, -rank:], **CLOSE)


def test_logits_are_theirs(hyper: tuple[Memory, dict[str, Tensor]]) -> None:
    memory, theirs = hyper
    _, logits = read(memory, theirs, theirs["context"])
    assert_close(logits, theirs["logits"], **CLOSE)
    _, nothing = read(memory, theirs, theirs["context"][:0])
    assert float((logits - nothing).abs().max()) > 0.01


def test_settings_of_a_hypernetwork_that_are_not_known_are_refused() -> None:
    file = released_hypernetwork._read(CHECKPOINT / "pytorch_model.bin")
    check = released_hypernetwork._check
    settings = file["hypernet_config"]
    only, known = released_hypernetwork._HYPERNET, released_hypernetwork._HYPERNET_READ
    check("hypernet_config", settings, only, known)
    settings.per_layer_processing = False
    with pytest.raises(ConfigError, match="per_layer_processing is False; supported is True"):
        check("hypernet_config", settings, only, known)
    settings.per_layer_processing, settings.mixing = True, 1
    with pytest.raises(ConfigError, match="sets mixing, which is not known"):
        check("hypernet_config", settings, only, known)


class Attack:
    """What a loader that runs code would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("attacked"),))


def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"hypernet_config": Attack()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(StorageError, match="more than weights and settings"):
        released_hypernetwork.load(tmp_path, tmp_path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("load", [released_adapter.load, released_hypernetwork.load])
def test_a_missing_folder_and_a_missing_model_are_refused(load: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        load(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="--base"):
        load(tmp_path, None)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    whole = (CHECKPOINT / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="damaged"):
        released_hypernetwork.load(tmp_path, tmp_path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(StorageError, match="no checkpoint of Doc-to-LoRA"):
        released_hypernetwork.load(tmp_path, tmp_path)
