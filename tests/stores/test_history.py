"""Earlier states of a key: they are there as promised, whoever writes at once, and leave no trace when they go."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import GONE, MEMORY, PLACES, some

from memwrite.cli.main import main
from memwrite.errors import InputError, StorageError
from memwrite.stores import Store
from memwrite.stores.sqlite_backend import _extends_schema

FORK = multiprocessing.get_context("fork")
NAMES = st.text(min_size=1, max_size=6) | st.sampled_from(["a", "ab", "..", "%2F", "a/", "/", "%"])


def bytes_of(number: int) -> bytes:
    return some(number)["memory"].numpy().tobytes()


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["sqlite", "folder"])
@pytest.mark.parametrize("by", ["delete", "expire", "put", "rollback"])
def test_history_leaves_no_trace(kind: str, by: str, tmp_path: Path) -> None:
    with Store(PLACES[kind](tmp_path)) as store:
        for number in range(4):
            lifetime = GONE if (by, number) == ("expire", 3) else None
            store.put("secret", MEMORY, some(number), lifetime=lifetime, keep=3)
        kept = on_disk(tmp_path)
        assert all(bytes_of(number) in kept for number in range(4))
        if by == "delete":
            assert store.delete("secret") == 1
        elif by == "expire":
            assert store.expire() == 1
        elif by == "rollback":
            store.rollback("secret", 3)
        else:
            store.put("secret", MEMORY, some(4))
            store.delete()  # what was put over goes with the next deletion
        left = on_disk(tmp_path)
        names = {path.name for path in tmp_path.rglob("*")}
    after = {"rollback": [0]}.get(by, [])
    assert [number for number in range(4) if bytes_of(number) in left] == after
    assert by in ("put", "rollback") or not any("secret" in name for name in names)


def _put_many(place: str, first: int, number: int) -> None:
    with Store(place) as store:
        record = store.states("other")[0]
        for state in range(first, first + number):
            store.put("shared", MEMORY, some(state), keep=1000)
            store.backend.put([], [record], keep=1000)  # without a provenance, as a copy does


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_put_at_once_lose_no_state(kind: str, tmp_path: Path) -> None:
    place = PLACES[kind](tmp_path)
    with Store(place) as store:
        store.put("shared", MEMORY, some(100))
        store.put("other", MEMORY, some(0))
    children = [FORK.Process(target=_put_many, args=(place, 10 * turn, 8)) for turn in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    with Store(place) as store:
        assert len(store.history("shared")) == len(store.history("other")) == 24
        found = [data for _, data in store.states("shared")]
        expected = [*range(8), *range(10, 18), *range(20, 28), 100]
        assert all(sum(bytes_of(n) in data for data in found) == 1 for n in expected)
        store.rollback("shared", 24)
        assert torch.equal(store.get("shared", MEMORY)["memory"], some(100)["memory"])


def test_a_store_without_history_is_as_it_was(tmp_path: Path) -> None:
    """And one with it is what an older version takes for a newer minor version, which only adds."""
    path = tmp_path / "s.db"
    with Store(path) as store:
        store.put("a", MEMORY, some(1))
        store.put("a", MEMORY, some(2))
        assert store.history("a") == []
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    with Store(path) as store:
        store.put("a", MEMORY, some(3), keep=1)
        assert len(store.history("a")) == 1
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 0x101
        assert _extends_schema(connection)
        assert connection.execute("SELECT key FROM memories").fetchone()["key"] == "a"
        connection.execute("ALTER TABLE earlier ADD COLUMN more TEXT NOT NULL DEFAULT ''")
    with pytest.raises(StorageError, match="not a store of memories"):
        Store(path)


def test_what_an_older_version_deletes_does_not_come_back(tmp_path: Path) -> None:
    """It leaves the history behind, which is void without a present state."""
    path = tmp_path / "s.db"
    with Store(path) as store:
        for key in ("a", "b"):
            store.put(key, MEMORY, some(1), keep=1)
            store.put(key, MEMORY, some(2), keep=1)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM memories")
    with Store(path) as store:
        assert store.history("a") == []
        with pytest.raises(StorageError, match="fewer than 1 earlier"):
            store.rollback("a")
        store.put("a", MEMORY, some(3), keep=5)
        assert store.history("a") == []
        store.expire()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM earlier").fetchone() == (0,)


def test_numbers_of_states_that_are_none_are_refused(place: str) -> None:
    with Store(place) as store:
        with pytest.raises(InputError, match="keep=-1"):
            store.put("a", MEMORY, some(1), keep=-1)
        store.put("a", MEMORY, some(1))
        with pytest.raises(InputError, match="steps=0"):
            store.rollback("a", 0)
        with pytest.raises(StorageError, match="fewer than 1 earlier states"):
            store.rollback("a")


@settings(max_examples=15)
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=6))
def test_no_view_reaches_another(pairs: list[tuple[str, str]]) -> None:
    """Whatever the names and keys, with all that a view can do; and names with a slash are refused."""
    place = "memory://views"
    with Store(place) as store:
        store.delete(*[entry.key for entry in store.list()])
        held: dict[str, dict[str, int]] = {}
        for number, (name, key) in enumerate(pairs):
            if "/" in name:
                with pytest.raises(InputError):
                    store.within(name)
                continue
            with suppress(InputError):
                store.within(name).put(key, MEMORY, some(number), keep=2)
                held.setdefault(name, {})[key] = number
        for name, keys in held.items():
            view = store.within(name)
            assert [entry.key for entry in view.list()] == sorted(keys)
            assert {*view.find([key for _, key in pairs if key.isprintable()])} == {*keys}
            assert view.size().memories == len(keys)
            for key, number in keys.items():
                assert torch.equal(view.get(key, MEMORY)["memory"], some(number)["memory"])
                assert f"{name}/{key}" in store.find([f"{name}/{key}"])
        for name, keys in [*held.items()][:1]:
            others = {n: [e.key for e in store.within(n).list()] for n in held if n != name}
            view = store.within(name)
            assert view.delete(*[k for _, k in pairs if k.isprintable()]) == len(keys)
            view.put("gone", MEMORY, some(1), lifetime=GONE)
            assert view.expire() == 1
            assert [*view.list()] == []
            assert others == {n: [e.key for e in store.within(n).list()] for n in others}


def test_a_view_expires_nothing_of_others(place: str) -> None:
    with Store(place) as store:
        for name in ("a", "b", "ab"):
            store.within(name).put("k", MEMORY, some(1), keep=1)
            store.within(name).put("k", MEMORY, some(2), lifetime=GONE, keep=1)
        assert store.within("a").expire() == 1
        assert [store.within(name).size().memories for name in ("a", "b", "ab")] == [0, 1, 1]
        assert store.expire() == 2
        assert store.size().nbytes == 0


def test_a_view_has_shorter_keys(place: str) -> None:
    with Store(place) as store:
        view = store.within("ava")
        view.put("x" * 196, MEMORY, some(1))
        with pytest.raises(InputError, match="196 bytes at most"):
            view.put("x" * 197, MEMORY, some(1))
        for name in ("", "new\nline", "x" * 200):
            with pytest.raises(InputError):
                store.within(name)
        inner = view.within("inner")
        inner.put("k", MEMORY, some(1))
        assert [entry.key for entry in inner.list()] == ["k"]
        assert inner.provenance("k")["key"] == "k"


def test_the_commands(tmp_path: Path) -> None:
    place = str(tmp_path / "s.db")

    def run(*words: str) -> Any:
        return CliRunner().invoke(main, ["store", *words])

    with Store(place) as store:
        for number in range(3):
            lifetime = timedelta(days=1) if number == 0 else None
            store.put("a", MEMORY, some(number), keep=2, lifetime=lifetime)
    told = run("history", place, "a", "--json").stdout.splitlines()
    assert [json.loads(line)["key"] for line in told] == ["a", "a"]
    assert [json.loads(line)["expires"] is None for line in told] == [True, False]
    done = run("rollback", place, "a", "--steps", "2")
    assert done.exit_code == 0
    assert "until" in done.stdout
    with Store(place) as store:
        assert torch.equal(store.get("a", MEMORY)["memory"], some(0)["memory"])
    assert run("history", place, "a").stdout == ""
    for words in (("rollback", place, "a"), ("history", place, "nobody")):
        refused = run(*words)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
