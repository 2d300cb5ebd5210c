"""The default store: one SQLite file, which any number of processes and threads may use at once."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Lock

import memwrite
from memwrite.errors import StorageError
from memwrite.stores.record import Entry, entry_of, stamp

#: "MemW", the mark of our SQLite files.
APPLICATION = 0x4D656D57
#: The major version of the schema, the low byte of SQLite's user_version. The bytes above it count minor versions, which
#: add columns that may be left empty, tables and indices.
VERSION = 1
_TIMEOUT = 60.0
_PAGE = 500
_SCHEMA = {
    "memories": """CREATE TABLE memories (
        key TEXT PRIMARY KEY, recipe TEXT NOT NULL, created TEXT NOT NULL, expires TEXT, source TEXT,
        data BLOB NOT NULL
    ) STRICT""",
    "recipes": "CREATE TABLE recipes (digest TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT",
    "expiring": "CREATE INDEX expiring ON memories (expires) WHERE expires IS NOT NULL",
}
_COLUMNS = {
    "memories": {"key", "recipe", "created", "expires", "source", "data"},
    "recipes": {"digest", "data"},
}
_ENTRY = "SELECT key, recipe, created, expires, source, length(data) AS nbytes FROM memories"


class SqliteBackend:
    """A `StoreBackend` with a write-ahead log, which is on the disk before a write is acknowledged.

    A file that may not be written, or whose folder or disk may not, can still be read. Only its owner may read a new
    file: a memory is as private as the text that it was written from.

    Args:
        path: path of the file; made if it is not there.

    Raises:
        StorageError: it is another kind of file, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._lock = Lock()
        self._process = 0
        self._connection: sqlite3.Connection | None = None
        self._frozen = False
        with self._reading():
            pass

    def put(
        self, provenances: Sequence[tuple[str, bytes]], records: Sequence[tuple[Entry, bytes]]
    ) -> None:
        """Keep all of them or none; see `StoreBackend.put`."""
        rows = [
            (
                e.key,
                e.provenance,
                stamp(e.created),
                e.expires and stamp(e.expires),
                e.text_digest,
                data,
            )
            for e, data in records
        ]
        with self._transaction() as connection:
            # The same provenance may say that the backbone is in another folder now.
            connection.executemany(
                "INSERT INTO recipes (digest, data) VALUES (?, ?) ON CONFLICT (digest) "
                "DO UPDATE SET data = excluded.data WHERE data != excluded.data",
                provenances,
            )
            connection.executemany(
                "INSERT OR REPLACE INTO memories (key, recipe, created, expires, source, data) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )

    def get(self, key: str) -> bytes | None:
        """Return the record of a key, if there is one."""
        return self._one("SELECT data FROM memories WHERE key = ?", key)

    def provenance(self, digest: str) -> bytes | None:
        """Return the provenance of that digest, if there is one."""
        return self._one("SELECT data FROM recipes WHERE digest = ?", digest)

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of those keys that are there."""
        entries: dict[str, Entry] = {}
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            holes = ", ".join("?" * len(page))
            with self._reading() as connection:
                rows = connection.execute(f"{_ENTRY} WHERE key IN ({holes})", page).fetchall()
            entries |= {row["key"]: self._entry(row) for row in rows}
        return entries

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the entries whose keys begin with `prefix`, by key.

        They are read a page at a time, so that reading a long list blocks nobody.
        """
        last, strictly = prefix, ">="
        while True:
            query = f"{_ENTRY} WHERE key {strictly} ? ORDER BY key LIMIT ?"
            with self._reading() as connection:
                rows = connection.execute(query, (last, _PAGE)).fetchall()
            for row in rows:
                if not row["key"].startswith(prefix):
                    return
                yield self._entry(row)
            if len(rows) < _PAGE:
                return
            last, strictly = rows[-1]["key"], ">"

    def delete(self, keys: Sequence[str]) -> int:
        """Remove records, and return how many were there; their pages are overwritten with zeros, in the log too."""
        with self._transaction() as connection:
            rows = [(key,) for key in keys]
            removed = connection.executemany("DELETE FROM memories WHERE key = ?", rows).rowcount
        self._truncate_log()
        return removed

    def expire(self, now: datetime) -> int:
        """Remove what has expired by `now` as `delete` does, and return how many records that were."""
        with self._transaction() as connection:
            query = "DELETE FROM memories WHERE expires <= ?"
            removed = connection.execute(query, (stamp(now),)).rowcount
        self._truncate_log()
        return removed

    def size(self) -> tuple[int, int]:
        """Return the number of records and of their bytes."""
        query = "SELECT count(*), coalesce(sum(length(data)), 0) FROM memories"
        with self._reading() as connection:
            count, nbytes = connection.execute(query).fetchone()
        return count, nbytes

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _one(self, query: str, name: str) -> bytes | None:
        with self._reading() as connection:
            row = connection.execute(query, (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def _entry(self, row: sqlite3.Row) -> Entry:
        return entry_of(dict(row), row["nbytes"], f"{self.name}: {row['key']}")

    def _truncate_log(self) -> None:
        # Until then the log may hold pages as they were; a busy reader puts it off to the next checkpoint.
        with self._reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._open()
        except (sqlite3.Error, OSError, OverflowError, UnicodeDecodeError) as error:
            raise StorageError(f"the store '{self.name}' cannot be used: {error}") from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _open(self) -> sqlite3.Connection:
        # SQLite's connections must not be used across a fork.
        if (
            self._connection is None
            or self._process != os.getpid()
            or (self._frozen and self._log.exists())
        ):
            self._connection, self._process = self._connected(), os.getpid()
        return self._connection

    @property
    def _log(self) -> Path:
        return self._path.with_name(f"{self._path.name}-wal")

    def _connected(self) -> sqlite3.Connection:
        options, self._frozen = "", False
        if self._path.exists() and not all(
            os.access(place, os.W_OK) for place in (self._path, self._path.parent)
        ):
            # Where no log can be made beside it; unless somebody has one, nobody is writing.
            self._frozen = not self._log.exists()
            options = "?immutable=1" if self._frozen else "?mode=ro"
        elif not self._path.exists():
            with suppress(FileExistsError):  # SQLite gives its log and index the mode of the file
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = sqlite3.connect(
            self._path.absolute().as_uri() + options,
            timeout=_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
            uri=True,
        )
        try:
            connection.row_factory = sqlite3.Row
            # A schema may come from a stranger.
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            self._prepare(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the tables of a new file; take an old one only if it has these and nothing that would run.

        Raises:
            StorageError: it is no store, or one of a version that cannot be used here.
        """
        if not _schema(connection):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            if not _schema(connection):
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
                for statement in _SCHEMA.values():
                    connection.execute(statement)
            connection.execute("COMMIT")
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        major, minor = version & 0xFF, version >> 8
        if application != APPLICATION:
            raise StorageError(f"'{self.name}' is a database, but not a store of memories")
        if major != VERSION:
            raise StorageError(
                f"'{self.name}' is a store of version {major}, but memwrite {memwrite.__version__} reads version "
                f"{VERSION}: install a newer memwrite"
            )
        if not (_extends_schema(connection) if minor else _schema(connection) == _SCHEMA):
            raise StorageError(f"'{self.name}' is a database, but not a store of memories")


def _schema(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return {row["name"]: row["sql"] for row in rows.fetchall()}


def _extends_schema(connection: sqlite3.Connection) -> bool:
    """Return whether a newer minor version has our tables and columns, and no further ones that must be filled."""
    kinds = {row["type"] for row in connection.execute("SELECT type FROM sqlite_schema")}
    if kinds - {"table", "index"}:  # views and triggers would run where the store is used
        return False
    for table, required in _COLUMNS.items():
        columns = {row["name"]: row for row in connection.execute(f"PRAGMA table_xinfo({table})")}
        others = [column for name, column in columns.items() if name not in required]
        if not required <= columns.keys() or any(
            column["hidden"] or (column["notnull"] and column["dflt_value"] is None)
            for column in others
        ):
            return False
    return True
