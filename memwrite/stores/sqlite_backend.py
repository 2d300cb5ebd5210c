"""The default store: one SQLite file, which any number of processes and threads may use at once."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

import memwrite
from memwrite.errors import StorageError
from memwrite.stores.sql_backend import Session, SqlBackend

#: "MemW", the mark of our SQLite files.
APPLICATION = 0x4D656D57
#: The major version of the schema, the low byte of SQLite's user_version. The bytes above it count minor versions, which
#: add columns that may be left empty, tables and indices.
VERSION = 1
_TIMEOUT = 60.0
_SCHEMA = {
    "memories": """CREATE TABLE memories (
        key TEXT PRIMARY KEY, recipe TEXT NOT NULL, created TEXT NOT NULL, expires TEXT, source TEXT,
        data BLOB NOT NULL
    ) STRICT""",
    "recipes": "CREATE TABLE recipes (digest TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT",
    "expiring": "CREATE INDEX expiring ON memories (expires) WHERE expires IS NOT NULL",
}
#: Minor version 1 adds the table of earlier records. A file gets it with the first record that is kept so.
_HISTORY = {
    "earlier": """CREATE TABLE earlier (
        key TEXT NOT NULL, number INTEGER NOT NULL, recipe TEXT NOT NULL, created TEXT NOT NULL, expires TEXT,
        source TEXT, data BLOB NOT NULL, PRIMARY KEY (key, number)
    ) STRICT"""
}
_COLUMNS = {
    "memories": {"key", "recipe", "created", "expires", "source", "data"},
    "recipes": {"digest", "data"},
    "earlier": {"key", "number", "recipe", "created", "expires", "source", "data"},
}


class SqliteBackend(SqlBackend):
    """An `SqlBackend` with a write-ahead log, which is on the disk before a write is acknowledged.

    The pages of what is removed are overwritten with zeros, in the log too.

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

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _has_history(self, session: Session, make: bool) -> bool:
        query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name = 'earlier'"
        there = session.execute(query, {}).fetchone() is not None
        if make and not there:
            version = session.execute("PRAGMA user_version", {}).fetchone()["user_version"]
            session.execute(f"PRAGMA user_version = {max(version, VERSION | 1 << 8)}", {})
            for statement in _HISTORY.values():
                session.execute(statement, {})
        return there or make

    def _wiped(self) -> None:
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
    def _transaction(self, blind: bool = False) -> Iterator[sqlite3.Connection]:
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
        known = {0: _SCHEMA, 1: _SCHEMA | _HISTORY}.get(minor)
        if not (_schema(connection) == known if known else _extends_schema(connection)):
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
        if not columns and table in _HISTORY:
            continue
        others = [column for name, column in columns.items() if name not in required]
        if not required <= columns.keys() or any(
            column["hidden"] or (column["notnull"] and column["dflt_value"] is None)
            for column in others
        ):
            return False
    return True
