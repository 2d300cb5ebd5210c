"""A store in a PostgreSQL database, which any number of machines may use at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import memwrite
from memwrite.errors import StorageError
from memwrite.stores.sql_backend import Cursor, Session, SqlBackend
from memwrite.utils.extras import extra

with extra("postgres"):
    import psycopg
    from psycopg.rows import dict_row

VERSION = 1
_PATIENCE = 30
_PARAMETER = re.compile(r":(\w+)")
#: What makes a store of a database; "C" sorts by code points.
_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS memwrite;
CREATE TABLE format (version INTEGER NOT NULL);
CREATE TABLE recipes (digest TEXT COLLATE "C" PRIMARY KEY, data BYTEA NOT NULL);
CREATE TABLE memories (
    key TEXT COLLATE "C" PRIMARY KEY, recipe TEXT NOT NULL, created TEXT NOT NULL, expires TEXT COLLATE "C",
    source TEXT, data BYTEA NOT NULL
);
CREATE INDEX expiring ON memories (expires) WHERE expires IS NOT NULL;
CREATE TABLE earlier (
    key TEXT COLLATE "C" NOT NULL, number BIGINT NOT NULL, recipe TEXT NOT NULL, created TEXT NOT NULL,
    expires TEXT COLLATE "C", source TEXT, data BYTEA NOT NULL, PRIMARY KEY (key, number)
);
"""


class PostgresBackend(SqlBackend):
    """An `SqlBackend` in the schema `memwrite` of a database.

    Changes are made one at a time, and are on the server's disk before they are acknowledged; who reads waits for nobody.
    What is removed is in the server's files until it vacuums and recycles its log.

    Args:
        url: as in "postgresql://user@host/database"; see "Connection URIs" in PostgreSQL's documentation.
        make: whether to make the store if it is not there.

    Raises:
        StorageError: the server cannot be reached, or has no such store.
    """

    def __init__(self, url: str, make: bool) -> None:
        self._url = url
        self.name, self._secrets = _without_secrets(url)
        self._lock = Lock()
        self._process = 0
        self._connection: psycopg.Connection[Any] | None = None
        with self._reading() as session:
            self._prepare(session, make)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _has_history(self, session: Session, make: bool) -> bool:
        return True

    def _wiped(self) -> None:
        pass

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        try:
            with self._lock:
                yield _Statements(self._open())
        except psycopg.Error as error:
            reason = " ".join(str(error).split())
            for secret in self._secrets:
                reason = reason.replace(secret, "…")
            raise StorageError(f"the store '{self.name}' cannot be used: {reason}") from None

    @contextmanager
    def _transaction(self, blind: bool = False) -> Iterator[Session]:
        with self._reading() as session:
            assert self._connection is not None
            together = self._connection.pipeline() if blind else nullcontext()
            with together, self._connection.transaction():
                session.execute("LOCK TABLE memories IN SHARE ROW EXCLUSIVE MODE", {})
                yield session

    def _open(self) -> psycopg.Connection[Any]:
        # A connection must not be used across a fork, and a server that was started again has none.
        if (
            self._connection is None
            or self._process != os.getpid()
            or self._connection.closed
            or self._connection.broken
        ):
            connection = psycopg.connect(
                self._url, autocommit=True, row_factory=dict_row, connect_timeout=_PATIENCE
            )
            connection.execute("SET search_path TO memwrite")
            connection.execute("SET synchronous_commit TO on")
            connection.execute(f"SET lock_timeout TO '{_PATIENCE}s'")
            self._connection, self._process = connection, os.getpid()
        return self._connection

    def _prepare(self, session: Session, make: bool) -> None:
        """Make the tables where there are none.

        Raises:
            StorageError: there is no store, or one of a version that cannot be used here.
        """
        there = "SELECT to_regclass('memwrite.format') IS NOT NULL AS there"
        if not session.execute(there, {}).fetchone()["there"]:
            if not make:
                raise StorageError(f"there is no store at '{self.name}'")
            assert self._connection is not None
            with self._connection.transaction():
                session.execute(f"SELECT pg_advisory_xact_lock({0x4D656D57})", {})
                if not session.execute(there, {}).fetchone()["there"]:
                    for statement in _SCHEMA.split(";")[:-1]:
                        session.execute(statement, {})
                    session.execute(f"INSERT INTO format (version) VALUES ({VERSION})", {})
        row = session.execute("SELECT version FROM format", {}).fetchone()
        if row is None or row["version"] != VERSION:
            raise StorageError(
                f"'{self.name}' is a store of version {row and row['version']}, but memwrite {memwrite.__version__} reads "
                f"version {VERSION}: install a newer memwrite"
            )


class _Statements:
    """A connection that takes parameters like `:key`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, query: str, parameters: Mapping[str, Any], /) -> Cursor:
        """Run one statement."""
        text = _PARAMETER.sub(r"%(\1)s", query)
        return self._connection.execute(text.encode(), parameters)


def _without_secrets(url: str) -> tuple[str, list[str]]:
    """Return a URL as it may be shown, and the passwords that were in it."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError as error:
        raise StorageError(f"the URL of a PostgreSQL database cannot be read: {error}") from None
    user = f"{parts.username}@" if parts.username else ""
    written = parts.password or ""
    secrets = [written, unquote(written), *parse_qs(parts.query).get("password", [])]
    name = f"{parts.scheme}://{user}{parts.hostname or ''}{port}{parts.path}"
    return name, [secret for secret in secrets if secret]
