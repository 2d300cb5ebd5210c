"""The file format: what was saved comes back bit for bit, and nothing else is accepted."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memwrite import MemoryState, StateSpec
from memwrite.checkpoints.formats import FORMAT, REQUIRES, Header, StoredSpec
from memwrite.checkpoints.formats.v2 import DTYPES
from memwrite.checkpoints.state_file import StateFile, load_state, save_state
from memwrite.config import PartConfig
from memwrite.errors import StorageError


@pytest.fixture(scope="module")
def file() -> StateFile:
    """Two short tensors: every byte of the file can be tried."""
    spec = StateSpec("mine", {"a": (2, 3), "b": ()}, (0, 1), torch.bfloat16)
    tensors = {
        "a": torch.arange(6.0).reshape(1, 2, 3).bfloat16(),
        "b": torch.tensor([7.0]).bfloat16(),
    }
    header = Header(
        FORMAT,
        REQUIRES,
        StoredSpec.of(spec),
        "gpt2-0123",
        {"type": "gpt2", "params": {"n_embd": 32}},
        0,
        PartConfig("r"),
        PartConfig("w"),
        "2030-01-01",
        "0",
    )
    return StateFile(header, MemoryState(spec, tensors), {"w": torch.ones(2)})


@pytest.fixture(scope="module")
def small(file: StateFile, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "doc.st"
    save_state(path, file)
    return path.read_bytes()


def refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        load_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused(small: bytes, tmp_path: Path) -> None:
    for length in range(len(small)):
        refused(tmp_path / "cut.st", small[:length])


@pytest.mark.parametrize("flip", [0x01, 0x80, ord(" ") ^ ord("\t"), ord(" ") ^ ord("\n")])
def test_every_flipped_byte_is_refused(small: bytes, tmp_path: Path, flip: int) -> None:
    """In the length, the header, its padding and the numbers."""
    for place in range(len(small)):
        damaged = bytearray(small)
        damaged[place] ^= flip
        refused(tmp_path / "flipped.st", bytes(damaged))


@settings(max_examples=200)
@given(
    place=st.floats(0, 1, exclude_max=True),
    removed=st.integers(0, 40),
    added=st.binary(max_size=40),
)
def test_any_splice_is_refused(
    small: bytes,
    tmp_path_factory: pytest.TempPathFactory,
    place: float,
    removed: int,
    added: bytes,
) -> None:
    """Bytes cut out, put in or put in their place; never another exception, never silent acceptance."""
    start = int(place * len(small))
    damaged = small[:start] + added + small[start + removed :]
    if damaged != small:
        refused(tmp_path_factory.getbasetemp() / "spliced.st", damaged)


@settings(max_examples=100)
@given(st.binary(max_size=100))
@example(b"")
@example(b"{}")
@example((2).to_bytes(8, "little") + b"{}")
@example((2).to_bytes(8, "little") + b"[]")
@example((16).to_bytes(8, "little") + b'{"__metadata__":')
@example((2**63).to_bytes(8, "little") + b'{"a"')
@example((2**64 - 1).to_bytes(8, "little") + b'{"a"')
@example((1 << 20).to_bytes(8, "little") + b"{" * (1 << 20))
@example((9).to_bytes(8, "little") + b'{"a":"\xff"}')
@example((21).to_bytes(8, "little") + b'{"__metadata__":null}')
def test_bytes_that_are_no_state(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    refused(tmp_path_factory.getbasetemp() / "noise.st", data)


def fails(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod", "fdopen"])
def test_a_save_that_fails_leaves_what_was_there(
    file: StateFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The old file to the byte, and no temporary file, whichever step fails."""
    path = tmp_path / "doc.st"
    save_state(path, file)
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fails)
        with pytest.raises(StorageError, match=r"doc\.st.*No space left"):
            save_state(path, replace(file, weights={}))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["doc.st"]


def test_an_interrupted_save_leaves_what_was_there(
    file: StateFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "doc.st"
    path.write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, file)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["doc.st"])


def test_places_that_cannot_be_written(file: StateFile, tmp_path: Path) -> None:
    """A folder, a folder that is none, and a folder that is not there."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for target in ("folder", "file/doc.st", "none/doc.st"):
        with pytest.raises(StorageError, match="cannot be written"):
            save_state(tmp_path / target, file)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == ["kept"]


def test_places_that_cannot_be_read(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(2)}, tmp_path / "plain", {"format": "pt"})
    (tmp_path / "text").write_text("{}" * 20)
    (tmp_path / "empty").touch()
    for name, message in (
        ("none", "no state file"),
        ("none/doc.st", "no state file"),
        (".", "cannot be read"),
        ("plain", "not a memwrite state"),
        ("text", "not a memwrite state"),
        ("empty", "not a memwrite state"),
        ("text/doc.st", "cannot be read"),
    ):
        with pytest.raises(StorageError, match=message):
            load_state(tmp_path / name)


@settings(max_examples=30)
@given(data=st.data())
def test_any_state_comes_back(
    file: StateFile, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """Any names, shapes and dtypes, NaN and infinity included, to the bit."""
    path = tmp_path_factory.getbasetemp() / "any.st"
    names = data.draw(st.lists(st.text("ab.é_ ", min_size=1, max_size=4), unique=True, max_size=3))
    shapes = {name: tuple(data.draw(st.lists(st.integers(0, 3), max_size=3))) for name in names}
    dtype = data.draw(st.sampled_from([getattr(torch, name) for name in DTYPES]))
    rows = data.draw(st.integers(0, 3))
    spec = StateSpec("own kind", shapes, (1,), dtype, data.draw(st.booleans()))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(rows, *shape, generator=draw)
        values = values.where(values < 1, torch.inf).where(values > -1, torch.nan)
        if not dtype.is_floating_point:
            values = values.nan_to_num(0, 1, 0)
        tensors[name] = values.to(dtype)
    state = MemoryState(spec, tensors)
    save_state(path, StateFile(replace(file.header, spec=StoredSpec.of(spec)), state))
    again = load_state(path)
    assert again.state.spec == spec
    assert again.weights == {}
    for name, tensor in tensors.items():
        assert again.state[name].shape == tensor.shape
        assert bits(again.state[name]) == bits(tensor)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("declared", [2**62, 2**40, 10**6, 1 << 20])
def test_a_huge_declared_header_is_refused_before_it_is_read(tmp_path: Path, declared: int) -> None:
    (tmp_path / "bomb").write_bytes(declared.to_bytes(8, "little") + b"{" * 50)
    with pytest.raises(StorageError):
        load_state(tmp_path / "bomb")
    (tmp_path / "deep").write_bytes((200_000).to_bytes(8, "little") + b'{"a":' * 40_000)
    with pytest.raises(StorageError):
        load_state(tmp_path / "deep")
