"""A store of memories: states under keys, each with where it came from, in a place that processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memwrite.checkpoints.state_file import StateFile
from memwrite.config import to_dict
from memwrite.errors import InputError, StorageError
from memwrite.memory import Memory
from memwrite.state import MemoryState
from memwrite.stores.backend import StoreBackend
from memwrite.stores.record import Entry, Provenance, check_key, pack, restore, unpack
from memwrite.stores.sqlite_backend import SqliteBackend

_RECIPES_AT_HAND = 16


@dataclass(frozen=True)
class Size:
    """How much a store holds.

    Attributes:
        memories: their number, those included that have expired and were not removed yet.
        nbytes: of all of them.
    """

    memories: int
    nbytes: int


class Store:
    """Memories under keys: one for each user, document or whatever a key stands for.

    What `put` has returned from is on the disk, and no process ever sees a part of it. Threads and processes may share a
    store. The text is never in it, but who has a state and the model can recall the text: a store is as private
    as what was written.

    Args:
        place: path of a file, an SQLite database; or a URL that fsspec knows, as in "s3://bucket/memories".
        make: whether to make it if it is not there.

    Raises:
        StorageError: it is not there, or no store, or cannot be used.
    """

    def __init__(self, place: str | Path, make: bool = True) -> None:
        self._place = _open(place, make)
        self.name = self._place.name
        self._recipe = lru_cache(_RECIPES_AT_HAND)(self._read_recipe)

    def put(
        self,
        key: str,
        memory: Memory,
        state: MemoryState,
        *,
        source: str | None = None,
        lifetime: timedelta | None = None,
    ) -> None:
        """Keep a state under `key`, in place of what was there.

        Args:
            key: 1 to 200 bytes of printable text.
            memory: that wrote it, or that it was opened with.
            state: one row.
            source: the text that was written; its sha256 is kept.
            lifetime: after which it is gone; by default it stays.

        Raises:
            InputError: the key is no key, or the state has several rows.
            IncompatiblePair: the memory's reader does not accept such a state.
            StorageError: the place cannot be used.
        """
        sources = None if source is None else [source]
        self.put_rows([key], memory, state, sources=sources, lifetime=lifetime)

    def put_rows(
        self,
        keys: Sequence[str],
        memory: Memory,
        state: MemoryState,
        *,
        sources: Sequence[str] | None = None,
        lifetime: timedelta | None = None,
    ) -> None:
        """Keep each row of `state` under its key, all at once; see `put`."""
        if state.batch_size not in (None, len(keys)):
            raise InputError(
                f"the state holds {state.batch_size} rows, but {len(keys)} keys were given"
            )
        memory.check_state(state)
        recipe = provenance_of(memory, state)
        now = datetime.now(UTC)
        records = []
        for row, key in enumerate(keys):
            entry = Entry(
                key=check_key(key),
                recipe=recipe.digest,
                created=now,
                expires=None if lifetime is None else now + lifetime,
                source=None if sources is None else source_digest(sources[row]),
            )
            records.append((entry, pack(entry, state.rows(slice(row, row + 1)), self.name)))
        self._place.put([(recipe.digest, recipe.pack(self.name))], records)

    def get(self, key: str, memory: Memory) -> MemoryState:
        """The state under `key`, on the device of the `memory` that is to read it.

        Raises:
            StorageError: there is none, it is damaged, or it was written for another backbone or reader.
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
        """A memory that reads, and the state under `key`; see `Memory.load`."""
        where = f"{self.name}: {key}"
        return Memory.opened(self.file(key), where, backbone=backbone, device=device, force=force)

    def file(self, key: str) -> StateFile:
        """The state under `key` as a state file.

        Raises:
            StorageError: there is none, or it is damaged.
        """
        where = f"{self.name}: {key}"
        data = self._place.get(check_key(key))
        if data is None:
            raise StorageError(f"'{self.name}' holds nothing under '{key}'")
        entry, tensors = unpack(data, where)
        if entry.key != key:
            raise StorageError(f"'{self.name}' is damaged: under '{key}' lies '{entry.key}'")
        if entry.expired(datetime.now(UTC)):
            raise StorageError(f"'{self.name}' holds nothing under '{key}': it has expired")
        return restore(entry, tensors, self._recipe(entry.recipe), where)

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries of those of the keys under which there is something."""
        now = datetime.now(UTC)
        found = self._place.find([check_key(key) for key in keys])
        return {key: entry for key, entry in found.items() if not entry.expired(now)}

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """What there is under keys that begin with `prefix`, by key."""
        now = datetime.now(UTC)
        return (entry for entry in self._place.list(prefix) if not entry.expired(now))

    def provenance(self, key: str) -> dict[str, Any]:
        """Where the memory under `key` came from, as plain data: the entry, its writer, reader, and backbone.

        Raises:
            StorageError: there is none, or it is damaged.
        """
        entry = self.find([key]).get(key)
        if entry is None:
            raise StorageError(f"'{self.name}' holds nothing under '{key}'")
        header = to_dict(self._recipe(entry.recipe).header)
        del header["created"], header["format"]
        return {**described(entry), **header}

    def delete(self, *keys: str) -> int:
        """Remove what is under these keys, without a trace; how many there were."""
        return self._place.delete([check_key(key) for key in keys])

    def expire(self) -> int:
        """Remove what has expired, without a trace; how many that were."""
        return self._place.expire(datetime.now(UTC))

    def size(self) -> Size:
        """How much there is."""
        return Size(*self._place.size())

    def close(self) -> None:
        """Let go of the place."""
        self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _read_recipe(self, digest: str) -> Provenance:
        data = self._place.recipe(digest)
        if data is None:
            raise StorageError(f"'{self.name}' is damaged: it lacks the recipe {digest}")
        return Provenance.unpack(digest, data, f"{self.name}: recipe {digest}")


def provenance_of(memory: Memory, state: MemoryState) -> Provenance:
    """What a state of `memory` has in common with all others that the same writer writes."""
    return Provenance.of(memory.state_file(state))


def source_digest(text: str) -> str:
    """sha256 of a text, as hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def described(entry: Entry) -> dict[str, Any]:
    """An entry as plain data."""
    told = to_dict(entry)
    for name in ("created", "expires"):
        told[name] = told[name] and told[name].isoformat(timespec="seconds")
    return told


def _open(place: str | Path, make: bool) -> StoreBackend:
    if "://" in str(place):
        from memwrite.stores.fsspec_backend import FsspecBackend

        return FsspecBackend(str(place), make)
    path = Path(place)
    if not make and not path.exists():
        raise StorageError(f"there is no store at '{path}'")
    if not path.parent.is_dir():
        raise StorageError(f"'{path}' cannot be made: there is no folder '{path.parent}'")
    return SqliteBackend(path)
