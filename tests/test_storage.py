"""State files are untrusted input: what was saved comes back bit for bit, and nothing else is accepted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import MODELS

from memwrite import Memory, MemoryState, Tokens
from memwrite.errors import MemwriteError, PluginNotFound, StorageError
from memwrite.storage import load_state, write_bytes

CONFIG = {
    "backbone": MODELS["gpt2"],
    "writer": {"name": "gradient", "params": {"slots": 2, "order": "none"}},
    "reader": {"name": "prefix"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Memory, MemoryState]:
    memory = Memory.from_config(CONFIG)
    state = memory.write("a secret text").state
    path = tmp_path_factory.mktemp("saved") / "doc.st"
    memory.save(state, path)
    return path, memory, state


Saved = tuple[Path, Memory, MemoryState]


def test_a_state_comes_back_bit_for_bit_with_its_reader(saved: Saved) -> None:
    path, memory, state = saved
    other, loaded = Memory.load(path)
    assert loaded.spec == state.spec
    assert torch.equal(loaded["memory"], state["memory"])
    query = Tokens.from_rows([[1, 2, 3]])
    assert torch.equal(other.read(loaded, query).logits, memory.read(state, query).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_keys_and_values_of_every_dtype_come_back(tmp_path: Path, dtype: str) -> None:
    """Masks stay bool and positions int64; empty tensors are tensors too."""
    config = {
        "backbone": {**MODELS["llama"], "dtype": dtype},
        "writer": {"name": "full-context"},
        "reader": {"name": "key-value"},
    }
    memory = Memory.from_config(config)
    for name, state in (
        ("full", memory.write(Tokens.from_rows([[1, 2, 3], [4]])).state),
        ("none", memory.writer.init(2)),
    ):
        memory.save(state, tmp_path / name)
        loaded = Memory.load(tmp_path / name)[1]
        assert loaded.spec == state.spec
        for key, tensor in state.tensors.items():
            assert torch.equal(loaded[key], tensor), key


def test_the_text_is_nowhere_in_the_file(saved: Saved) -> None:
    data = saved[0].read_bytes()
    assert b"secret" not in data
    assert json.dumps("secret text")[1:8].encode() not in data


@given(st.data())
def test_any_flipped_byte_and_any_cut_is_refused(saved: Saved, data: Any) -> None:
    """Never another exception than StorageError, never silent acceptance."""
    whole = saved[0].read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:position] + bytes([whole[position] ^ change]) + whole[position + 1 :]
    for damaged in (flipped, whole[:cut], whole + b"\0"):
        path = saved[0].with_name("damaged.st")
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"damaged\.st"):
            load_state(path)


def rewritten(path: Path, change: Any) -> Path:
    """The file with its header changed, its checksum made right again."""
    from memwrite.storage import _checksum

    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["memwrite"])
    change(header)
    text, tensors = json.dumps(header), safetensors.torch.load(data)
    out = path.with_name("rewritten.st")
    metadata = {"memwrite": text, "checksum": _checksum(text, tensors)}
    out.write_bytes(safetensors.torch.save(tensors, metadata))
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=99), "format 99"),
        (lambda h: h.pop("reader"), "reader"),
        (lambda h: h.update(extra=1), "extra"),
        (lambda h: h["spec"].update(kind="theirs"), "emits 'theirs'"),
        (lambda h: h["spec"].update(dtype="os.system"), "dtype"),
        (lambda h: h["spec"]["shapes"].update(memory=[9, 9]), "memory"),
        (lambda h: h["spec"]["shapes"].update(latent=[2, 32]), "latent"),
        (lambda h: h.update(created="${oc.env:HOME}"), "interpolation"),
        (lambda h: h["backbone"].update(type=[1]), "rewritten"),
    ],
)
def test_a_header_that_lies_is_refused(saved: Saved, change: Any, message: str) -> None:
    with pytest.raises(MemwriteError, match=message):
        Memory.load(rewritten(saved[0], change))


def test_an_unknown_reader_is_named(saved: Saved) -> None:
    path = rewritten(saved[0], lambda header: header["reader"].update(name="theirs"))
    with pytest.raises(PluginNotFound, match="'theirs'"):
        Memory.load(path)


@pytest.mark.parametrize("declared", [2**62, 2**40, 10**6, 1 << 20])
def test_a_huge_declared_header_is_refused_before_it_is_read(tmp_path: Path, declared: int) -> None:
    (tmp_path / "bomb").write_bytes(declared.to_bytes(8, "little") + b"{" * 50)
    with pytest.raises(StorageError):
        load_state(tmp_path / "bomb")
    (tmp_path / "deep").write_bytes((200_000).to_bytes(8, "little") + b'{"a":' * 40_000)
    with pytest.raises(StorageError):
        load_state(tmp_path / "deep")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no state file"):
        load_state(tmp_path / "none")
    with pytest.raises(StorageError, match="cannot be read"):
        load_state(tmp_path)
    safetensors.torch.save_file({"x": torch.zeros(3)}, tmp_path / "x")
    with pytest.raises(StorageError, match="not a memwrite state"):
        load_state(tmp_path / "x")


def test_a_backbone_that_moved_is_asked_for(tmp_path: Path) -> None:
    """The path in the file is a hint; where nothing is, --backbone is named, and nothing is downloaded."""
    Memory.from_config({"backbone": {**MODELS["gpt2"], "trainable": True}}).save_run(tmp_path / "a")
    memory = Memory.from_config({**CONFIG, "backbone": {"path": str(tmp_path / "a")}})
    memory.save(memory.write("x").state, tmp_path / "doc.st")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(StorageError, match="--backbone"):
        Memory.load(tmp_path / "doc.st")
    assert Memory.load(tmp_path / "doc.st", backbone=str(tmp_path / "b"))[1].nbytes == 2 * 32 * 4


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All or nothing, and no temporary file left over."""
    path = tmp_path / "doc"
    write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["doc"]
    with pytest.raises(StorageError):
        write_bytes(tmp_path / "no" / "doc", b"new")
