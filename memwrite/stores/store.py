"""A store of memories: states under keys, each with where it came from, in a place that processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memwrite.checkpoints.state_file import StateFile
from memwrite.config import to_dict
from memwrite.errors import InputError, MemwriteError, StorageError
from memwrite.memory import Memory
from memwrite.state import MemoryState
from memwrite.stores.backend import StoreBackend
from memwrite.stores.record import LONGEST_KEY, Entry, Provenance, check_key, pack, restore, unpack
from memwrite.stores.sqlite_backend import SqliteBackend

_CACHED_PROVENANCES = 16


@dataclass(frozen=True)
class Size:
    """How much a store holds.

    Attributes:
        memories: their number, those included that have expired and were not removed yet; earlier states do not count.
        nbytes: of all of them, earlier states included.
    """

    memories: int
    nbytes: int


class Store:
    """Memories under keys: one for each user, document or whatever a key stands for.

    What `put` has returned from is on the disk, and no process ever sees a part of it. Threads and processes may share a
    store. The text is never in it, but who has a state and the model can recall the text: a store is as private
    as what was written.

    Attributes:
        backend: what keeps the bytes; it knows keys of the whole store only.
        name: of the place.

    Args:
        place: path of a file, an SQLite database; or a URL, as in "postgresql://user@host/database", or one that fsspec
            knows, as in "s3://bucket/memories".
        make: whether to make the store if it is not there.

    Raises:
        StorageError: the store is not there, is something else, or cannot be used.
    """

    def __init__(self, place: str | Path, make: bool = True) -> None:
        self.backend = _open(place, make)
        self._prefix = ""
        self.name = self.backend.name
        self._provenance = lru_cache(_CACHED_PROVENANCES)(self._read_provenance)

    def put(
        self,
        key: str,
        memory: Memory,
        state: MemoryState,
        *,
        text: str | None = None,
        lifetime: timedelta | None = None,
        keep: int = 0,
    ) -> None:
        """Keep a state under `key`, in place of what was there.

        What was there is kept as an earlier state, if `keep` is not zero, and `rollback` puts it back.

        Args:
            key: 1 to 200 bytes of printable text.
            memory: that wrote it, or that it was opened with.
            state: one row.
            text: the text that was written; its sha256 is kept.
            lifetime: after which it is gone; by default it stays.
            keep: how many earlier states the key has at most from now on. With none, the default, those that were kept
                before are removed, too.

        Raises:
            InputError: the key is no key, the lifetime is too long, `keep` is negative, or the state has several rows.
            IncompatiblePair: the memory's reader does not accept such a state.
            StorageError: the place cannot be used.
        """
        texts = None if text is None else [text]
        self.put_rows([key], memory, state, texts=texts, lifetime=lifetime, keep=keep)

    def put_rows(
        self,
        keys: Sequence[str],
        memory: Memory,
        state: MemoryState,
        *,
        texts: Sequence[str] | None = None,
        lifetime: timedelta | None = None,
        keep: int = 0,
    ) -> None:
        """Keep each row of `state` under its key, all at once; see `put`.

        Raises:
            InputError: there are more or fewer keys than rows, or as for `put`.
        """
        if state.batch_size not in (None, len(keys)):
            raise InputError(
                f"the state holds {state.batch_size} rows, but {len(keys)} keys were given"
            )
        if keep < 0:
            raise InputError(f"keep={keep} is no number of earlier states: give 0 or more")
        memory.check_state(state)
        provenance = provenance_of(memory, state)
        now = datetime.now(UTC)
        expires = None if lifetime is None else expiry(now, lifetime)
        records = []
        for row, key in enumerate(keys):
            entry = Entry(
                key=self._place(key),
                provenance=provenance.digest,
                created=now,
                expires=expires,
                text_digest=None if texts is None else text_digest(texts[row]),
            )
            records.append((entry, pack(entry, state.rows(slice(row, row + 1)), self.name)))
        self.backend.put([(provenance.digest, provenance.pack(self.name))], records, keep)

    def get(self, key: str, memory: Memory) -> MemoryState:
        """Return the state under `key`, on the device of the `memory` that is to read it, and may write on in it.

        Raises:
            StorageError: there is none, it is damaged, it was written for another backbone or reader, or by another
                writer than the memory's.
        """
        file, where = self.file(key), f"{self.name}: {key}"
        return memory.adopt(file, where)

    def load(
        self,
        key: str,
        *,
        backbone: str | None = None,
        device: str | None = None,
        force: bool = False,
    ) -> tuple[Memory, MemoryState]:
        """Return a memory that reads, and the state under `key`; see `Memory.load`."""
        where = f"{self.name}: {key}"
        return Memory.opened(self.file(key), where, backbone=backbone, device=device, force=force)

    def file(self, key: str) -> StateFile:
        """Return the state under `key` as a state file.

        Raises:
            StorageError: there is none, or it is damaged.
        """
        where = f"{self.name}: {key}"
        place = self._place(key)
        data = self.backend.get(place)
        if data is None:
            raise StorageError(f"'{self.name}' holds nothing under '{key}'")
        entry, tensors = unpack(data, where)
        if entry.key != place:
            raise StorageError(f"'{self.name}' is damaged: under '{place}' lies '{entry.key}'")
        if entry.expired(datetime.now(UTC)):
            raise StorageError(f"'{self.name}' holds nothing under '{key}': it has expired")
        return restore(entry, tensors, self._provenance(entry.provenance), where)

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of those keys under which there is something."""
        now = datetime.now(UTC)
        entries = self.backend.find([self._place(key) for key in keys]).values()
        return {e.key: e for e in map(self._seen, entries) if not e.expired(now)}

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the entries under keys that begin with `prefix`, by key."""
        now = datetime.now(UTC)
        entries = self.backend.list(self._prefix + prefix)
        return (self._seen(entry) for entry in entries if not entry.expired(now))

    def history(self, key: str) -> Sequence[Entry]:
        """Return the entries of the earlier states of `key`, newest first; none where there is nothing under it.

        Raises:
            StorageError: a state is damaged.
        """
        return [self._seen(entry) for entry, _ in self.states(key)[1:]]

    def states(self, key: str) -> Sequence[tuple[Entry, bytes]]:
        """Return the record of `key` and its earlier records with their entries, newest first, but for those that have expired.

        Raises:
            StorageError: one is damaged.
        """
        now, place = datetime.now(UTC), self._place(key)
        records = [
            (unpack(data, f"{self.name}: {key}")[0], data) for data in self.backend.states(place)
        ]
        for entry, _ in records:
            if entry.key != place:
                raise StorageError(f"'{self.name}' is damaged: under '{place}' lies '{entry.key}'")
        if not records or records[0][0].expired(now):
            return []
        return [(entry, data) for entry, data in records if not entry.expired(now)]

    def rollback(self, key: str, steps: int = 1) -> None:
        """Put the state back that `key` had `steps` puts ago, and remove those that came after it without a trace.

        Args:
            key: of the memory.
            steps: 1 for the newest entry of `history`, 2 for the one behind it, and so on.

        Raises:
            InputError: `steps` is less than one.
            StorageError: so many earlier states are not there.
        """
        if steps < 1:
            raise InputError(f"steps={steps} is no number of puts to go back: give 1 or more")
        if not self.backend.rollback(self._place(key), steps, datetime.now(UTC)):
            raise StorageError(
                f"'{self.name}' keeps fewer than {steps} earlier states of '{key}': `history` lists them, and "
                f"`put(..., keep=n)` keeps up to n"
            )

    def within(self, name: str) -> Store:
        """Return a view of the part of this store that belongs to a tenant: a store with keys of its own.

        This store has them under the name, a slash and the key. A view reaches nothing else, and views with other names
        share nothing with it. A view is closed with its store.

        Args:
            name: printable text without a slash; the view's keys are shorter by its bytes and one more.

        Raises:
            InputError: the name cannot be one.
        """
        if "/" in check_key(name):
            raise InputError(f"the name '{name}' has a slash: that could be another name's key")
        view = copy(self)
        view._prefix, view.name = f"{self._prefix}{name}/", f"{self.name}, {name}"
        check_key(f"{view._prefix}k")
        return view

    def written_by(self, memory: Memory, state: MemoryState) -> Callable[[Entry], bool]:
        """Return a test of entries: whether `memory` would write them for the same reader, into states like `state`.

        Where the writer's states grow, into states of any size.
        """
        provenance = provenance_of(memory, state)
        identity = provenance.identity

        @lru_cache(None)
        def same(digest: str) -> bool:
            if digest == provenance.digest:
                return True
            try:
                return identity.same(self._provenance(digest).identity, memory.backbone)
            except MemwriteError:  # damaged: to be written again
                return False

        return lambda entry: same(entry.provenance)

    def provenance(self, key: str) -> dict[str, Any]:
        """Return where the memory under `key` came from, as plain data: the entry, its writer, reader, and backbone.

        Raises:
            StorageError: there is none, or it is damaged.
        """
        entry = self.find([key]).get(key)
        if entry is None:
            raise StorageError(f"'{self.name}' holds nothing under '{key}'")
        header = to_dict(self._provenance(entry.provenance).header)
        del header["created"], header["format"], header["requires"]
        return {**entry_fields(entry), **header}

    def delete(self, *keys: str) -> int:
        """Remove what is under these keys, earlier states too, without a trace, and return how many keys had something."""
        return self.backend.delete([self._place(key) for key in keys])

    def expire(self) -> int:
        """Remove what has expired, its earlier states too, without a trace, and return from how many keys."""
        return self.backend.expire(datetime.now(UTC), self._prefix)

    def size(self) -> Size:
        """Return how much there is."""
        return Size(*self.backend.size(self._prefix))

    def close(self) -> None:
        """Close the store."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _place(self, key: str) -> str:
        """Return where the backend has what this store, or this view of one, has under `key`.

        Raises:
            InputError: it is no key, or too long for this view.
        """
        check_key(key)
        place = self._prefix + key
        if len(place.encode()) > LONGEST_KEY:
            room = LONGEST_KEY - len(self._prefix.encode())
            raise InputError(f"the key '{key[:40]}…' is too long here: {room} bytes at most")
        return place

    def _seen(self, entry: Entry) -> Entry:
        """Return an entry of the backend with the key that it has here."""
        return replace(entry, key=entry.key[len(self._prefix) :]) if self._prefix else entry

    def _read_provenance(self, digest: str) -> Provenance:
        data = self.backend.provenance(digest)
        if data is None:
            raise StorageError(f"'{self.name}' is damaged: it lacks the provenance {digest}")
        return Provenance.unpack(digest, data, f"{self.name}: provenance {digest}")


def provenance_of(memory: Memory, state: MemoryState) -> Provenance:
    """Return what a state of `memory` has in common with all others that the same writer writes."""
    return Provenance.of(memory.state_file(state))


def text_digest(text: str) -> str:
    """Return the sha256 of a text, as hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def expiry(now: datetime, lifetime: timedelta) -> datetime:
    """Return when something that is written now expires.

    Raises:
        InputError: that is beyond the last year of the calendar.
    """
    try:
        return now + lifetime
    except OverflowError:
        raise InputError(
            f"a lifetime of {lifetime.days} days ends beyond the year 9999: give a shorter one, or none to keep the "
            f"memory for good"
        ) from None


def entry_fields(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain data."""
    fields = to_dict(entry)
    for name in ("created", "expires"):
        fields[name] = fields[name] and fields[name].isoformat(timespec="seconds")
    return fields


def _open(place: str | Path, make: bool) -> StoreBackend:
    if str(place).startswith(("postgresql://", "postgres://")):
        from memwrite.stores.postgres_backend import PostgresBackend

        return PostgresBackend(str(place), make)
    if "://" in str(place):
        from memwrite.stores.fsspec_backend import FsspecBackend

        return FsspecBackend(str(place), make)
    path = Path(place)
    if not make and not path.exists():
        raise StorageError(f"there is no store at '{path}'")
    if not path.parent.is_dir():
        raise StorageError(f"'{path}' cannot be made: there is no folder '{path.parent}'")
    return SqliteBackend(path)
