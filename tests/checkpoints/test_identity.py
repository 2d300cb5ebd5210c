"""What a memory was written by: the same under other versions, defaults and places, another with other weights."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import MODELS

import memwrite
from memwrite import Memory
from memwrite.checkpoints import container
from memwrite.checkpoints.identity import Identity
from memwrite.checkpoints.state_file import StateFile, load_state
from memwrite.errors import StorageError
from memwrite.plugins import registry
from memwrite.session import Session
from memwrite.stores import Store
from memwrite.stores.documents import Documents
from memwrite.stores.ingest import write_documents

CONFIG: dict[str, Any] = {
    "backbone": MODELS["llama"],
    "writer": {"name": "gradient", "params": {"slots": 2, "steps": 2}},
    "reader": {"name": "prefix"},
}
TEXT = "The boat is blue."
LEGACY = Path(__file__).parent / "data" / "v1"


def identity(file: StateFile) -> Identity:
    return Identity.of(file.header, file.weights)


def file_of(**changes: Any) -> StateFile:
    memory = Memory.from_config({**CONFIG, **changes})
    return memory.state_file(memory.write(TEXT).state)


SAME: dict[str, dict[str, Any]] = {
    "defaults that are spelled out": {
        "writer": {"name": "gradient", "params": {"slots": 2, "steps": 2, "control_tokens": 0}}
    },
    "another attention": {"backbone": {**MODELS["llama"], "attention": "eager"}},
    "trained along": {"backbone": {**MODELS["llama"], "trainable": True}},
}
OTHER: dict[str, dict[str, Any]] = {
    "other weights": {"seed": 1},
    "other steps": {"writer": {"name": "gradient", "params": {"slots": 2, "steps": 3}}},
    "another size": {"writer": {"name": "gradient", "params": {"slots": 3, "steps": 2}}},
    "another writer": {"writer": {"name": "forward", "params": {"slots": 2}}},
    "another reader": {"reader": {"name": "prefix"}, "writer": {"name": "no-memory"}},
}


@pytest.mark.parametrize("changes", SAME)
def test_what_computes_the_same_is_the_same(changes: str) -> None:
    first, second = identity(file_of()), identity(file_of(**SAME[changes]))
    assert (first, first.digest) == (second, second.digest)


@pytest.mark.parametrize("changes", OTHER)
def test_what_computes_something_else_is_another(changes: str) -> None:
    reader = {"reader": {"name": "no-memory"}} if changes == "another reader" else {}
    first, second = identity(file_of()), identity(file_of(**{**OTHER[changes], **reader}))
    assert first.digest != second.digest


def _with_new_option(kind: type[Any]) -> type[Any]:
    extra = [("new_option", int, field(default=7))]
    made = make_dataclass(kind.__name__, extra, bases=(kind,), frozen=True)
    made.__module__ = kind.__module__  # where the names in its annotations are looked up
    return made


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes this a newer memwrite, whose writer and configuration have an option more."""

    def upgrade() -> None:
        table = registry().writers.entries
        [(plugin, owner)] = table["gradient"]
        changed = replace(plugin, config=_with_new_option(plugin.config))
        monkeypatch.setitem(table, "gradient", [(changed, owner)])
        monkeypatch.setattr(memwrite, "__version__", "99.0")

    return upgrade


@pytest.fixture(params=["sqlite", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "s.db") if request.param == "sqlite" else f"file://{tmp_path}/store"


def documents(path: Path, **texts: str) -> Path:
    path.write_text("".join(json.dumps({"id": k, "text": t}) + "\n" for k, t in texts.items()))
    return path


def test_an_upgrade_leaves_stores_readable_and_written(
    place: str, tmp_path: Path, newer: Callable[[], None]
) -> None:
    """Nothing is written again, and nothing is damaged."""
    path = documents(tmp_path / "docs.jsonl", a=TEXT, b="another")
    memory = Memory.from_config(CONFIG)
    with Store(place) as store:
        assert write_documents(memory, Documents.of(path), store).written == 2
    newer()
    again = Memory.from_config({**CONFIG, "backbone": {**MODELS["llama"], "attention": "eager"}})
    with Store(place) as store:
        assert write_documents(again, Documents.of(path), store).already == 2
        store.put("c", again, again.write(TEXT).state)
        for key in "abc":
            store.get(key, again)
            store.load(key)


def test_another_folder_of_the_backbone_is_the_same(place: str, tmp_path: Path) -> None:
    """And what is put from it is then looked for in it."""
    path = documents(tmp_path / "docs.jsonl", a=TEXT)
    Memory.from_config({"backbone": {**MODELS["llama"], "trainable": True}}).save_run(
        tmp_path / "old"
    )
    config = {**CONFIG, "backbone": {"path": str(tmp_path / "old")}}
    with Store(place) as store:
        assert write_documents(Memory.from_config(config), Documents.of(path), store).written == 1
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = Memory.from_config({**CONFIG, "backbone": {"path": str(tmp_path / "new")}})
    with Store(place) as store:
        assert write_documents(moved, Documents.of(path), store).already == 1
        with pytest.raises(StorageError, match="looked for in"):
            store.load("a")
        store.put("b", moved, moved.write(TEXT).state)
    with Store(place) as store:
        store.load("b")


@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_what_an_older_version_wrote_is_not_written_again(kind: str, tmp_path: Path) -> None:
    memory = Memory.from_config(LEGACY / "run-gradient")
    if kind == "sqlite":
        place = str(shutil.copy(LEGACY / "store.db", tmp_path))
    else:
        place = f"file://{shutil.copytree(LEGACY / 'store', tmp_path / 'store')}"
    path = documents(tmp_path / "docs.jsonl", **{"user/gradient": TEXT, "user/forward": TEXT})
    with Store(place) as store:
        tally = write_documents(memory, Documents.of(path), store)
        assert (tally.already, tally.written) == (1, 1)
        store.get("user/gradient", memory)
        store.get("user/forward", memory)


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory.from_config(CONFIG)


@pytest.mark.parametrize("change", ["weights", "parameters", "writer"])
def test_no_writer_goes_on_with_what_another_wrote(
    memory: Memory, tmp_path: Path, change: str
) -> None:
    """Neither in a session, nor from a store; to read it is another matter."""
    params = {"slots": 2, "steps": 3 if change == "parameters" else 2}
    other = Memory.from_config({**CONFIG, "writer": {"name": "gradient", "params": params}})
    if change == "writer":
        other = Memory.from_config(
            {**CONFIG, "writer": {"name": "forward", "params": {"slots": 2}}}
        )
    if change == "weights":
        with torch.no_grad():
            next(other.writer.parameters()).add_(1)
    state = memory.write(TEXT).state
    memory.save(state, tmp_path / "doc.st")
    session = Session(other)
    with pytest.raises(StorageError, match=r"written by another writer .* open it with Memory"):
        session.load(tmp_path / "doc.st")
    with Store(tmp_path / "s.db") as store:
        store.put("a", memory, state)
        with pytest.raises(StorageError, match="written by another writer"):
            store.get("a", other)
        store.load("a")
    reading, loaded = Memory.load(tmp_path / "doc.st")
    Session(reading, loaded, read_only=True).load(tmp_path / "doc.st")
    Session(memory).load(tmp_path / "doc.st")


def test_a_state_that_is_opened_and_saved_keeps_its_writer(memory: Memory, tmp_path: Path) -> None:
    memory.save(memory.write(TEXT).state, tmp_path / "a.st")
    again, state = Memory.load(tmp_path / "a.st")
    again.save(state, tmp_path / "b.st")
    first, second = (load_state(tmp_path / f"{name}.st") for name in "ab")
    assert first.header.writer_fingerprint == second.header.writer_fingerprint != ""
    assert identity(first).digest == identity(second).digest


# ---- newer files -------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    header, tensors = container.unpack(path.read_bytes(), str(path))
    change(header)
    path.write_bytes(container.pack(json.dumps(header), tensors, str(path)))


def _add_fields(header: dict[str, Any]) -> None:
    header.update(format=header["format"] + 1, mood="good", memwrite="9.9")
    header["backbone"]["compression"] = None
    header["spec"]["order"] = "row"
    header["spec"]["tensors"]["memory"]["scale"] = 1.0


def test_optional_fields_of_newer_files_are_ignored_with_a_warning(
    memory: Memory, tmp_path: Path
) -> None:
    path, state = tmp_path / "doc.st", memory.write(TEXT).state
    memory.save(state, path)
    rewritten(path, _add_fields)
    with pytest.warns(UserWarning, match=r"memwrite 9\.9.*'mood'.*is ignored") as caught:
        _, loaded = Memory.load(path)
    message = str(caught[0].message)
    assert all(name in message for name in ("backbone.compression", "spec.order", "memory.scale"))
    assert torch.equal(loaded["memory"], state["memory"])
    rewritten(path, lambda header: header.update(requires=header["format"]))
    with pytest.raises(StorageError, match=r"is of format 3, .* install a newer memwrite"):
        Memory.load(path)


def test_records_of_newer_stores_are_read_where_they_can_be(memory: Memory, tmp_path: Path) -> None:
    record = tmp_path / "store" / "memories" / "a.memory"
    with Store(f"file://{tmp_path}/store") as store:
        store.put("a", memory, memory.write(TEXT).state)
        rewritten(record, lambda header: header.update(format=2, requires=1, tags=["x"]))
        with pytest.warns(UserWarning, match="its tags is ignored"):
            store.get("a", memory)
        rewritten(record, lambda header: header.update(requires=2))
        with pytest.raises(StorageError, match="install a newer memwrite"):
            store.get("a", memory)


def test_the_newest_format_is_written_whatever_was_opened(tmp_path: Path) -> None:
    with Store(shutil.copy(LEGACY / "store.db", tmp_path), make=False) as store:
        file = store.file("user/delta")
    assert file.header.format == 2
    memory, state = Memory.load(LEGACY / "delta.safetensors")
    memory.save(state, tmp_path / "doc.st")
    header, _ = container.unpack((tmp_path / "doc.st").read_bytes(), "doc.st")
    assert header["format"] == 2
    assert header["spec"]["tensors"] == {
        "S": {"shape": [2, 1, 4, 4], "dtype": None, "per_layer": True}
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_state(tmp_path / "doc.st").state.spec == state.spec
