"""A copy of a store holds the same bytes, whatever kind the two are of, and wherever it was cut off."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
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
from memwrite.errors import StorageError
from memwrite.stores import Store
from memwrite.stores.copying import copy_store
from memwrite.stores.sqlite_backend import SqliteBackend

PUTS = st.lists(
    st.tuples(st.sampled_from(["a", "a/b", "ü"]), st.integers(0, 99), st.integers(0, 3)), max_size=8
)


def content(place: str) -> dict[str, Sequence[bytes]]:
    """Every record and provenance."""
    with Store(place, make=False) as store:
        found: dict[str, Sequence[bytes]] = {}
        for entry in store.list():
            found[entry.key] = [data for _, data in store.states(entry.key)]
            provenance = store.backend.provenance(entry.provenance)
            assert provenance is not None
            found[entry.provenance] = [provenance]
        return found


def filled(place: str, puts: Sequence[tuple[str, int, int]]) -> None:
    with Store(place) as store:
        for key, number, keep in puts:
            store.put(key, MEMORY, some(number), text=key, keep=keep)


FEW = [("a", 1, 0), ("b", 2, 0), ("a", 3, 2), ("a", 4, 2), ("b/c", 5, 0)]


@pytest.mark.parametrize("kind", PLACES)
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    first, other, back = str(tmp_path / "1.db"), PLACES[kind](tmp_path), str(tmp_path / "2.db")
    filled(first, FEW)
    with Store(first) as store:
        store.put("kept", MEMORY, some(7), lifetime=timedelta(days=1))
        store.put("gone", MEMORY, some(8), lifetime=GONE)
    done = copy_store(first, other)
    assert (done.copied, done.already) == (4, 0)
    copy_store(other, back)
    assert content(first) == content(other) == content(back)
    assert done.nbytes == sum(len(d) for k, c in content(first).items() if len(k) < 64 for d in c)
    again = copy_store(first, other)
    assert (again.copied, again.already, again.nbytes) == (0, 4, 0)
    with Store(other) as store:
        store.rollback("a", 2)
        assert torch.equal(store.get("a", MEMORY)["memory"], some(1)["memory"])


@settings(max_examples=10)
@given(PUTS, PUTS)
def test_what_is_there_is_replaced_only_when_asked(
    puts: list[tuple[str, int, int]], others: list[tuple[str, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, other = f"memory://{folder}/1", f"memory://{folder}/2"
        filled(first, puts)
        filled(other, others)
        wanted, before = content(first), content(other)
        with suppress(StorageError):
            copy_store(first, other)
        left = content(other)
        for key, states in before.items():
            if len(key) < 64:
                assert left[key] in (states, wanted.get(key))
                assert {*states} <= {*left[key]}
        copy_store(first, other, replace=True)
        # A provenance that is there already may be in another order of its fields.
        after = content(other)
        assert after.keys() == (before | wanted).keys()
        assert all(states == after[key] for key, states in wanted.items() if len(key) < 64)
        assert all(after[key] == states for key, states in before.items() if key not in wanted)


def test_a_copy_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between two records of one key, where there are no transactions."""
    first, other = str(tmp_path / "1.db"), PLACES["folder"](tmp_path)
    filled(first, FEW)
    from memwrite.stores.fsspec_backend import FsspecBackend

    write = FsspecBackend._write
    for cut in range(1, 9):
        left = cut

        def some_writes(self: Any, path: str, data: bytes) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            write(self, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(FsspecBackend, "_write", some_writes)
            with suppress(KeyboardInterrupt):
                copy_store(first, other)
        if cut % 2:  # else it is cut off again
            copy_store(first, other)
            assert content(first) == content(other)
            with Store(other) as store:
                store.delete("a", "b", "b/c")


def test_damage_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = PLACES["folder"](tmp_path), str(tmp_path / "2.db")
    filled(first, FEW)
    record = tmp_path / "store" / "earlier" / "a.memory" / f"{1:010}"
    whole = record.read_bytes()
    record.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match="damaged"):
        copy_store(first, other)
    record.write_bytes(whole)
    put = SqliteBackend.put

    def forgetful(self: Any, provenances: Any, records: Any, keep: int = 0) -> None:
        put(self, provenances, records[-1:], keep)

    with monkeypatch.context() as patch:
        patch.setattr(SqliteBackend, "put", forgetful)
        with pytest.raises(StorageError, match="does not hold what was copied"):
            copy_store(first, other)
    (provenance,) = (tmp_path / "store" / "recipes").iterdir()
    os.unlink(provenance)
    with pytest.raises(StorageError, match="lacks the provenance"):
        copy_store(first, str(tmp_path / "3.db"))


def test_the_command(tmp_path: Path) -> None:
    first, other = str(tmp_path / "1.db"), PLACES["folder"](tmp_path)
    filled(first, FEW)

    def run(*words: str) -> Any:
        return CliRunner().invoke(main, ["store", "copy", *words])

    assert json.loads(run(first, other, "--prefix", "b", "--json").stdout)["copied"] == 2
    assert run(first, other).stdout.startswith("1 memories copied")
    filled(other, [("a", 9, 0)])
    refused = run(first, other)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "holds something else under 'a'" in refused.stderr
    assert run(first, other, "--replace").exit_code == 0
    assert content(first) == content(other)
    missing = run(str(tmp_path / "none.db"), other)
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
