"""A store of memories holds what was put and nothing else, whatever place it is in and whoever else uses it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import CONFIG, GONE, MEMORY, PLACES, Stored, some

from memwrite import Memory, MemoryState
from memwrite.errors import InputError, StorageError
from memwrite.stores import Store
from memwrite.stores.store import text_digest


@pytest.mark.parametrize("kind", PLACES)
def test_a_store_is_a_dictionary_that_lasts(kind: str) -> None:
    machine: Any = type("Stored", (Stored,), {"kind": kind})
    case = machine.TestCase
    case.settings = settings(
        max_examples=4 if kind == "postgresql" else 10, stateful_step_count=20, deadline=None
    )
    case("runTest").runTest()


def test_where_a_memory_came_from_is_told_and_its_text_is_not(place: str, tmp_path: Path) -> None:
    secret = "the launch code is 7361"
    written = MEMORY.write(secret)
    with Store(place) as store:
        store.put("doc", MEMORY, written.state, text=secret, lifetime=timedelta(days=1))
        told = store.provenance("doc")
        file = store.file("doc")
    assert told["text_digest"] == text_digest(secret)
    assert told["writer"] == {"name": "gradient", "params": {"slots": 2}}
    assert told["fingerprint"] == MEMORY.backbone.fingerprint
    assert told["writer_fingerprint"] == MEMORY.writer_fingerprint != ""
    assert told["created"] < told["expires"]
    assert torch.equal(file.state["memory"], written.state["memory"])
    data = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret.encode() not in data


@pytest.mark.parametrize(
    ("writer", "reader"), [("full-context", "key-value"), ("gradient", "prefix")]
)
def test_who_wrote_a_memory_is_known(tmp_path: Path, writer: str, reader: str) -> None:
    """Also where states grow, so that none has the size of an empty one."""
    parts = {"writer": {"name": writer}, "reader": {"name": reader}}
    memory = Memory.from_config({**CONFIG, **parts})
    other = Memory.from_config({**CONFIG, **parts, "seed": 1})
    with Store(tmp_path / "store.db") as store:
        store.put("a", memory, memory.write("x").state)
        (entry,) = store.list()
        assert store.written_by(memory, memory.writer.init(1))(entry)
        assert not store.written_by(other, other.writer.init(1))(entry)


def test_a_memory_is_read_by_what_it_was_written_for_alone(place: str) -> None:
    other = Memory.from_config({**CONFIG, "seed": 3})
    with Store(place) as store:
        store.put("doc", MEMORY, some(1))
        with pytest.raises(StorageError, match="was written for the backbone"):
            store.get("doc", other)
        reader, state = store.load("doc")
    assert reader.ask(state, "ab", max_new_tokens=3) == MEMORY.ask(some(1), "ab", max_new_tokens=3)


@pytest.mark.parametrize("key", ["", "x" * 201, "new\nline", "\ud800", "nul\0"])
def test_keys_that_are_none_are_refused(place: str, key: str) -> None:
    with Store(place) as store:
        for use in (lambda: store.put(key, MEMORY, some(0)), lambda: store.file(key)):
            with pytest.raises(InputError, match="key"):
                use()


def test_names_that_a_folder_cannot_hold_are_refused(tmp_path: Path) -> None:
    with Store(PLACES["folder"](tmp_path)) as store, pytest.raises(InputError, match="too long"):
        store.put("ü" * 100, MEMORY, some(0))


def test_rows_and_keys_must_be_as_many(place: str) -> None:
    with Store(place) as store, pytest.raises(InputError, match="1 rows, but 2 keys"):
        store.put_rows(["a", "b"], MEMORY, some(0))


@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_nothing_is_left_of_what_was_deleted(kind: str, tmp_path: Path) -> None:
    """Neither in the file nor in its log."""
    place, numbers = PLACES[kind](tmp_path), range(6)
    with Store(place) as store:
        for number in numbers:
            store.put(str(number), MEMORY, some(number), lifetime=GONE if number == 4 else None)
        store.put("5", MEMORY, some(0))
        store.delete("1", "2")
        store.expire()
        data = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    found = [n for n in numbers if some(n)["memory"].numpy().tobytes() in data]
    assert found == [0, 3]


def _write_on(place: str, first: int, told: Any) -> None:
    store = Store(place)
    for number in range(first, first + 10_000):
        store.put(str(number), MEMORY, some(number))
        os.write(told, number.to_bytes(4, "little"))


@pytest.mark.parametrize("kind", ["sqlite", "folder", "postgresql"])
def test_what_was_acknowledged_outlives_killed_writers(kind: str, tmp_path: Path) -> None:
    """Three processes at once, each killed in the midst of it; what they were told is kept is there, and whole."""
    place = PLACES[kind](tmp_path)
    before = Store(place)  # goes through the fork
    before.put("before", MEMORY, some(7))
    fork, acknowledged = multiprocessing.get_context("fork"), []
    for turn in range(2):
        children = []
        for writer in range(3):
            read, write = os.pipe()
            first = (3 * turn + writer) * 10_000
            child = fork.Process(target=_write_on, args=(place, first, write))
            child.start()
            os.close(write)
            children.append((child, read))
        for child, read in children:
            for _ in range(5):
                acknowledged.append(int.from_bytes(os.read(read, 4), "little"))
            os.kill(child.pid, signal.SIGKILL)
            while rest := os.read(read, 4):
                acknowledged.append(int.from_bytes(rest, "little"))
            os.close(read)
            child.join()
    with Store(place, make=False) as store:
        for number in acknowledged:
            assert torch.equal(store.get(str(number), MEMORY)["memory"], some(number)["memory"])
        there = [entry.key for entry in store.list()]
        for key in there:
            store.file(key)
        assert len(acknowledged) >= 30
        assert {*map(str, acknowledged), "before"} <= {*there}
    assert torch.equal(before.get("before", MEMORY)["memory"], some(7)["memory"])


def test_another_database_is_no_store(tmp_path: Path) -> None:
    """Nor one with our tables and a view or a trigger besides, which would run where it is read."""
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE people (name TEXT)")
    with pytest.raises(StorageError, match="not a store of memories"):
        Store(path)
    ours = tmp_path / "ours.db"
    Store(ours).close()
    with sqlite3.connect(ours) as connection:
        connection.execute("CREATE TRIGGER t AFTER DELETE ON memories BEGIN SELECT 1; END")
    with pytest.raises(StorageError, match="not a store of memories"):
        Store(ours)


def test_a_newer_schema_is_used_where_it_only_adds(tmp_path: Path) -> None:
    """Columns that may be left empty, tables and indices; a major version is refused."""
    path = tmp_path / "s.db"
    with Store(path) as store:
        store.put("a", MEMORY, some(1))
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE memories ADD COLUMN tags TEXT")
        connection.execute("CREATE TABLE owners (name TEXT) STRICT")
    with pytest.raises(StorageError, match="not a store of memories"):
        Store(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 0x201")
    with Store(path) as store:
        store.put("b", MEMORY, some(2))
        for number, key in enumerate("ab", 1):
            assert torch.equal(store.get(key, MEMORY)["memory"], some(number)["memory"])
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TRIGGER t AFTER DELETE ON memories BEGIN SELECT 1; END")
    with pytest.raises(StorageError, match="not a store of memories"):
        Store(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(StorageError, match=r"store of version 2, .* install a newer memwrite"):
        Store(path)


@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_what_a_store_holds_is_its_owners_alone(kind: str, tmp_path: Path) -> None:
    """The database and its log, and each record of a folder, whatever the umask says."""
    old = os.umask(0)
    try:
        with Store(PLACES[kind](tmp_path)) as store:
            store.put("a", MEMORY, some(1))
            modes = [p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()]
    finally:
        os.umask(old)
    assert modes == [0o600] * (3 if kind == "sqlite" else 2)


def test_a_lifetime_beyond_the_calendar_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        with pytest.raises(InputError, match="beyond the year 9999"):
            store.put("a", MEMORY, some(1), lifetime=timedelta.max)
        assert store.size().memories == 0


def test_places_that_cannot_be_used_are_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at as one" * 20)
    for place, message in (
        (tmp_path / "none" / "s.db", "no folder"),
        (tmp_path / "text", "not a database"),
        (tmp_path, "unable to open"),
        ("nosuch://x/y", "nosuch"),
        (f"file://{tmp_path}/text/s", "cannot be used"),
    ):
        with pytest.raises(StorageError, match=message) as caught:
            Store(place)
        assert "\n" not in str(caught.value)
    for place in (tmp_path / "s.db", f"file://{tmp_path}/s"):
        with pytest.raises(StorageError, match="there is no store"):
            Store(place, make=False)


def test_a_store_that_may_not_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image or on a medium that is read-only; and if others do write it, what they wrote is seen."""
    path = tmp_path / "a store?.db"
    with Store(path) as store:
        store.put("a", MEMORY, some(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        reader = Store(path, make=False)
        assert torch.equal(reader.get("a", MEMORY)["memory"], some(1)["memory"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(StorageError, match="cannot be used: attempt to write a readonly database"):
        reader.put("a", MEMORY, some(2))
    with Store(path) as writer:
        writer.put("a", MEMORY, some(3))
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert torch.equal(reader.get("a", MEMORY)["memory"], some(3)["memory"])
    assert torch.equal(reader.get("a", MEMORY)["memory"], some(3)["memory"])


def test_a_store_that_may_be_written_again_keeps_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.db"
    with Store(path):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        reader = Store(path, make=False)
    with Store(path) as writer:
        writer.put("a", MEMORY, some(1))
        reader.put("b", MEMORY, some(2))
        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", None)
            assert torch.equal(reader.get("b", MEMORY)["memory"], some(2)["memory"])


def test_a_record_under_another_key_is_no_memory_of_that_user(tmp_path: Path) -> None:
    """Someone who may rename files, or write rows, cannot hand one user another's memory."""
    folder = Store(PLACES["folder"](tmp_path))
    folder.put("eve", MEMORY, some(1))
    records = tmp_path / "store" / "memories"
    (records / "eve.memory").rename(records / "bob.memory")
    database = Store(PLACES["sqlite"](tmp_path))
    database.put("eve", MEMORY, some(1))
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE memories SET key = 'bob'")
    for store in (folder, database):
        with pytest.raises(StorageError, match="lies 'eve'"):
            store.file("bob")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("damaged") / "store.db"
    with Store(path) as store:
        store.put_rows(list("abc"), MEMORY, MemoryState.stack([some(n) for n in range(3)]))
    return path, path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damage_is_told_or_without_effect(damaged: tuple[Path, bytes], data: st.DataObject) -> None:
    """Any bytes of the database changed or cut off: an error of ours, or the states as they were."""
    path, whole = damaged
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed[: data.draw(st.sampled_from([len(whole), len(whole) // 2, 100]))])
    with suppress(StorageError), Store(path) as store:
        for number, key in enumerate("abc"):
            assert torch.equal(store.get(key, MEMORY)["memory"], some(number)["memory"])
        list(store.list())
    for name in ("-wal", "-shm", "-journal"):
        Path(f"{path}{name}").unlink(missing_ok=True)
