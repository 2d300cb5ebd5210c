"""What stores in SQL databases have in common: their statements, the same for each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

from memwrite.stores.record import Entry, entry_of, stamp

_PAGE = 500
_FIELDS = "recipe, created, expires, source, data"
_ENTRY = "SELECT key, recipe, created, expires, source, length(data) AS nbytes FROM memories"
_ALIVE = "(expires IS NULL OR expires > :now)"
_WITHIN = "substr(key, 1, :length) = :prefix"
_REPLACE = "ON CONFLICT (key) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in _FIELDS.split(", ")
)
_PRESENT = 2**63 - 1

# The same provenance may say that the backbone is in another folder now.
_PUT_PROVENANCE = (
    "INSERT INTO recipes (digest, data) VALUES (:digest, :data) ON CONFLICT (digest) "
    "DO UPDATE SET data = excluded.data WHERE recipes.data != excluded.data"
)
_PUT = (
    f"INSERT INTO memories (key, {_FIELDS}) "
    f"VALUES (:key, :recipe, :created, :expires, :source, :data) {_REPLACE}"
)
_DROP_EXPIRED = (
    "DELETE FROM earlier WHERE key = :key "
    f"AND NOT EXISTS (SELECT 1 FROM memories WHERE key = :key AND {_ALIVE})"
)
_ARCHIVE = (
    f"INSERT INTO earlier (key, number, {_FIELDS}) "
    "SELECT key, (SELECT coalesce(max(number), 0) + 1 FROM earlier WHERE key = :key), "
    f"{_FIELDS} FROM memories WHERE key = :key AND {_ALIVE}"
)
_TRIM = (
    "DELETE FROM earlier WHERE key = :key "
    "AND number <= (SELECT max(number) FROM earlier WHERE key = :key) - :keep"
)
_FORGET = "DELETE FROM earlier WHERE key = :key"
_STATES = (
    f"SELECT data, {_PRESENT} AS number FROM memories WHERE key = :key "
    "UNION ALL SELECT data, number FROM earlier WHERE key = :key ORDER BY number DESC"
)
_FIND_EARLIER = (
    f"SELECT number FROM earlier WHERE key = :key AND {_ALIVE} "
    f"AND EXISTS (SELECT 1 FROM memories WHERE key = :key AND {_ALIVE}) "
    "ORDER BY number DESC LIMIT 1 OFFSET :offset"
)
_PUT_BACK = (
    f"INSERT INTO memories (key, {_FIELDS}) SELECT key, {_FIELDS} FROM earlier "
    f"WHERE key = :key AND number = :number {_REPLACE}"
)
_EXPIRE_EARLIER = (
    f"DELETE FROM earlier WHERE {_WITHIN} AND (expires <= :now OR NOT EXISTS "
    f"(SELECT 1 FROM memories WHERE memories.key = earlier.key AND {_ALIVE}))"
)


class Cursor(Protocol):
    """What a statement gives back: rows, whose columns have names."""

    @property
    def rowcount(self) -> int:
        """Return how many rows the statement changed."""
        ...

    def fetchone(self) -> Any:
        """Return the next row, if there is one."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        ...


class Session(Protocol):
    """A connection that runs statements with parameters like `:key`."""

    def execute(self, query: str, parameters: Mapping[str, Any], /) -> Cursor:
        """Run one statement."""
        ...


class SqlBackend(ABC):
    """A `StoreBackend` in the tables `memories`, `earlier` and `recipes`; every change is a transaction.

    Text sorts by code points, and times are kept as text, see `record.stamp`. A database tells how a connection to
    it is had, in `_reading` and `_transaction`; within the latter nobody else writes.
    """

    name: str

    def put(
        self,
        provenances: Sequence[tuple[str, bytes]],
        records: Sequence[tuple[Entry, bytes]],
        keep: int = 0,
    ) -> None:
        """Keep all of them or none; see `StoreBackend.put`."""
        with self._transaction(blind=True) as session:
            history = self._has_history(session, make=keep > 0)
            for digest, data in provenances:
                session.execute(_PUT_PROVENANCE, {"digest": digest, "data": data})
            before = ([_DROP_EXPIRED, _ARCHIVE] if keep else [_FORGET]) if history else []
            after = [_TRIM] if keep else []
            for entry, data in records:
                row = {
                    "key": entry.key,
                    "recipe": entry.provenance,
                    "created": stamp(entry.created),
                    "expires": entry.expires and stamp(entry.expires),
                    "source": entry.text_digest,
                    "data": data,
                    "now": stamp(entry.created),
                    "keep": keep,
                }
                for statement in (*before, _PUT, *after):
                    session.execute(statement, row)

    def get(self, key: str) -> bytes | None:
        """Return the record of a key, if there is one."""
        return self._one("SELECT data FROM memories WHERE key = :name", key)

    def states(self, key: str) -> Sequence[bytes]:
        """Return the record of a key and its earlier records, newest first; none where there is no record."""
        with self._reading() as session:
            if not self._has_history(session, make=False):
                data = session.execute(
                    "SELECT data FROM memories WHERE key = :key", {"key": key}
                ).fetchall()
                return [bytes(row["data"]) for row in data]
            rows = session.execute(_STATES, {"key": key}).fetchall()
        present = bool(rows) and rows[0]["number"] == _PRESENT
        return [bytes(row["data"]) for row in rows] if present else []

    def rollback(self, key: str, steps: int, now: datetime) -> bool:
        """Put back the record of `steps` records ago; see `StoreBackend.rollback`."""
        with self._transaction() as session:
            if not self._has_history(session, make=False):
                return False
            where = {"key": key, "now": stamp(now), "offset": steps - 1}
            row = session.execute(_FIND_EARLIER, where).fetchone()
            if row is None:
                return False
            found = {"key": key, "number": row["number"]}
            session.execute(_PUT_BACK, found)
            session.execute("DELETE FROM earlier WHERE key = :key AND number >= :number", found)
        self._wiped()
        return True

    def provenance(self, digest: str) -> bytes | None:
        """Return the provenance of that digest, if there is one."""
        return self._one("SELECT data FROM recipes WHERE digest = :name", digest)

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of those keys that are there."""
        entries: dict[str, Entry] = {}
        for start in range(0, len(keys), _PAGE):
            page = {f"key{number}": key for number, key in enumerate(keys[start : start + _PAGE])}
            holes = ", ".join(f":{name}" for name in page)
            with self._reading() as session:
                rows = session.execute(f"{_ENTRY} WHERE key IN ({holes})", page).fetchall()
            entries |= {row["key"]: self._entry(row) for row in rows}
        return entries

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the entries whose keys begin with `prefix`, by key.

        They are read a page at a time, so that reading a long list blocks nobody.
        """
        last, strictly = prefix, ">="
        while True:
            query = f"{_ENTRY} WHERE key {strictly} :last ORDER BY key LIMIT {_PAGE}"
            with self._reading() as session:
                rows = session.execute(query, {"last": last}).fetchall()
            for row in rows:
                if not row["key"].startswith(prefix):
                    return
                yield self._entry(row)
            if len(rows) < _PAGE:
                return
            last, strictly = rows[-1]["key"], ">"

    def delete(self, keys: Sequence[str]) -> int:
        """Remove records and their earlier ones, and return how many keys had one."""
        removed = 0
        with self._transaction() as session:
            history = self._has_history(session, make=False)
            for key in keys:
                if history:
                    session.execute(_FORGET, {"key": key})
                query = "DELETE FROM memories WHERE key = :key"
                removed += session.execute(query, {"key": key}).rowcount
        self._wiped()
        return removed

    def expire(self, now: datetime, prefix: str = "") -> int:
        """Remove what has expired by `now` as `delete` does; see `StoreBackend.expire`."""
        where = {"now": stamp(now), "length": len(prefix), "prefix": prefix}
        with self._transaction() as session:
            if self._has_history(session, make=False):
                session.execute(_EXPIRE_EARLIER, where)
            query = f"DELETE FROM memories WHERE expires <= :now AND {_WITHIN}"
            removed = session.execute(query, where).rowcount
        self._wiped()
        return removed

    def size(self, prefix: str = "") -> tuple[int, int]:
        """Return the number of keys that begin with `prefix`, and of the bytes of all their records."""
        tables = ["memories"]
        where = {"length": len(prefix), "prefix": prefix}
        with self._reading() as session:
            if self._has_history(session, make=False):
                tables.append("earlier")
            # In one statement, so that both are of the same moment.
            query = " UNION ALL ".join(
                f"SELECT {turn} AS turn, count(*) AS records, coalesce(sum(length(data)), 0) AS nbytes "
                f"FROM {table} WHERE {_WITHIN}"
                for turn, table in enumerate(tables)
            )
            rows = session.execute(f"{query} ORDER BY turn", where).fetchall()
        return int(rows[0]["records"]), sum(int(row["nbytes"]) for row in rows)

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Session]:
        """Lend the connection; what goes wrong meanwhile is a StorageError."""

    @abstractmethod
    def _transaction(self, blind: bool = False) -> AbstractContextManager[Session]:
        """Lend the connection for changes that are all made or none, while nobody else makes any.

        Where nobody looks at what they give back, `blind`, a distant database may be sent all of them at once.
        """

    @abstractmethod
    def _has_history(self, session: Session, make: bool) -> bool:
        """Return whether there is a table of earlier records, made now if it has to be."""

    @abstractmethod
    def _wiped(self) -> None:
        """Leave no trace of what was removed."""

    def _one(self, query: str, name: str) -> bytes | None:
        with self._reading() as session:
            row = session.execute(query, {"name": name}).fetchone()
        return None if row is None else bytes(row["data"])

    def _entry(self, row: Any) -> Entry:
        return entry_of(dict(row), row["nbytes"], f"{self.name}: {row['key']}")
