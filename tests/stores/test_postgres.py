"""What a store in PostgreSQL adds: threads, a server that was started again, and errors that give nothing away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import torch
from postgres_server import empty_database
from stored import MEMORY, some

from memwrite import MemoryState
from memwrite.errors import StorageError
from memwrite.stores import Store


def test_threads_share_a_store() -> None:
    with Store(empty_database()) as store, ThreadPoolExecutor(4) as pool:

        def put_and_get(number: int) -> bool:
            store.put(str(number), MEMORY, some(number))
            found = store.get(str(number), MEMORY)["memory"]
            return torch.equal(found, some(number)["memory"])

        assert all(pool.map(put_and_get, range(12)))
        assert store.size().memories == 12


def test_a_lost_connection_is_told_and_made_again() -> None:
    url = empty_database()
    with Store(url) as store:
        store.put("a", MEMORY, some(1))
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid != pg_backend_pid() AND backend_type = 'client backend'"
            )
        with pytest.raises(StorageError, match="cannot be used"):
            store.put("a", MEMORY, some(2))
        store.put("a", MEMORY, some(3))
        assert torch.equal(store.get("a", MEMORY)["memory"], some(3)["memory"])


def test_a_put_that_fails_changes_nothing() -> None:
    url = empty_database()
    with Store(url) as store:
        store.put("a", MEMORY, some(1), keep=2)
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("ALTER TABLE memwrite.memories ADD CHECK (key != 'b')")
        with pytest.raises(StorageError, match="violates check constraint"):
            store.put_rows(["a", "b"], MEMORY, MemoryState.stack([some(2), some(3)]), keep=2)
        assert torch.equal(store.get("a", MEMORY)["memory"], some(1)["memory"])
        assert store.history("a") == []


def test_what_is_refused_is_told_in_a_sentence() -> None:
    url = empty_database()
    with pytest.raises(StorageError, match="there is no store at"):
        Store(url, make=False)
    for place, message in (
        ("postgresql://ava:s3cret@127.0.0.1:1/x", "cannot be used"),
        ("postgresql://ava:s3cret@127.0.0.1:99999/x", "cannot be read"),
        (url.replace("postgres@", "eve@"), "does not exist"),
        (f"{url}&password=s3cret&unknown=1", "cannot be used"),
    ):
        with pytest.raises(StorageError, match=message) as caught:
            Store(place)
        assert "\n" not in str(caught.value)
        assert "s3cret" not in str(caught.value)
    Store(url).close()
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("UPDATE memwrite.format SET version = 2")
    with pytest.raises(StorageError, match=r"store of version 2, .* install a newer memwrite"):
        Store(url)
