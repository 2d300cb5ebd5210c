"""A store in any file system that fsspec knows: a folder, a bucket, another machine. One object for each memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, unquote

from memwrite.errors import InputError, StorageError
from memwrite.stores.record import Entry, unpack
from memwrite.utils.atomic import make_folder, write_bytes
from memwrite.utils.extras import extra

with extra("stores"):
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

_SUFFIX = ".memory"
_MAX_NAME = 240


class FsspecBackend:
    """A `StoreBackend` that writes each object whole or not at all; a put of several may be cut off between two.

    Such places know no transactions. A put that keeps history, or a rollback, that is cut off may leave the present
    record among the earlier ones, too, but loses none. Two at once under the same key may lose one of the two.

    Args:
        url: as in "s3://bucket/folder" or "file:///srv/memories".
        make: whether to make the store if it is not there.

    Raises:
        StorageError: fsspec does not know such file systems, or cannot reach this one.
    """

    def __init__(self, url: str, make: bool) -> None:
        self.name = url
        with self._reading():
            self._system, root = fsspec.core.url_to_fs(url)
            self._memories, self._provenances = f"{root}/memories", f"{root}/recipes"
            self._earlier = f"{root}/earlier"
            if not make and not self._system.exists(self._memories):
                raise StorageError(f"there is no store at '{url}'")
            for folder in (self._memories, self._provenances):
                self._system.makedirs(folder, exist_ok=True)

    def put(
        self,
        provenances: Sequence[tuple[str, bytes]],
        records: Sequence[tuple[Entry, bytes]],
        keep: int = 0,
    ) -> None:
        """Write one after the other; see `StoreBackend.put`."""
        for entry, _ in records:
            self._path(entry.key)
        for digest, data in provenances:
            # The same provenance may say that the backbone is in another folder now.
            if self.provenance(digest) != data:
                self._write(f"{self._provenances}/{digest}", data)
        for entry, data in records:
            if keep:
                self._archive(entry)
            self._write(self._path(entry.key), data)
            if keep:
                for number in self._numbers(entry.key)[:-keep]:
                    self._remove(self._path(entry.key, number))
            else:
                self._forget(entry.key)

    def get(self, key: str) -> bytes | None:
        """Return the record of a key, if there is one."""
        return self._read(self._path(key))

    def states(self, key: str) -> Sequence[bytes]:
        """Return the record of a key and its earlier records, newest first; none where there is no record."""
        present = self.get(key)
        if present is None:
            return []
        earlier = [self._read(self._path(key, n)) for n in reversed(self._numbers(key))]
        return [present, *(data for data in earlier if data is not None)]

    def rollback(self, key: str, steps: int, now: datetime) -> bool:
        """Put back the record of `steps` records ago; see `StoreBackend.rollback`."""
        present, numbers = self._entry(key), self._numbers(key)
        if present is None or present.expired(now):
            return False
        where = f"{self.name}: {key}"
        alive = [
            (number, data)
            for number in reversed(numbers)
            if (data := self._read(self._path(key, number))) is not None
            and not unpack(data, where)[0].expired(now)
        ]
        if len(alive) < steps:
            return False
        number, data = alive[steps - 1]
        self._write(self._path(key), data)
        for later in reversed([n for n in numbers if n >= number]):
            self._remove(self._path(key, later))
        return True

    def provenance(self, digest: str) -> bytes | None:
        """Return the provenance of that digest, if there is one."""
        return self._read(f"{self._provenances}/{digest}")

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of those keys that are there."""
        entries = {key: self._entry(key) for key in keys}
        return {key: entry for key, entry in entries.items() if entry is not None}

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield all entries whose keys begin with `prefix`, by key; the whole record of each is read."""
        for key in sorted(self._sizes(prefix)):
            if (entry := self._entry(key)) is not None:
                yield entry

    def delete(self, keys: Sequence[str]) -> int:
        """Remove records and their earlier ones, and return how many keys had one."""
        removed = 0
        for key in keys:
            removed += self._remove(self._path(key))
            self._forget(key)
        return removed

    def expire(self, now: datetime, prefix: str = "") -> int:
        """Remove what has expired by `now`; see `StoreBackend.expire`."""
        entries = {entry.key: entry.expired(now) for entry in self.list(prefix)}
        gone = [key for key, expired in entries.items() if expired]
        self.delete(gone)
        for key in {key for key, _ in self._all_earlier(prefix)}:
            if entries.get(key, True):
                self._forget(key)
            for number in self._numbers(key):
                path = self._path(key, number)
                data = self._read(path)
                if data is not None and unpack(data, f"{self.name}: {key}")[0].expired(now):
                    self._remove(path)
        return len(gone)

    def size(self, prefix: str = "") -> tuple[int, int]:
        """Return the number of keys that begin with `prefix`, and of the bytes of all their records."""
        sizes = self._sizes(prefix)
        earlier = sum(size for _, size in self._all_earlier(prefix))
        return len(sizes), sum(sizes.values()) + earlier

    def close(self) -> None:
        """Do nothing: no file stays open between two calls."""

    def _entry(self, key: str) -> Entry | None:
        data = self.get(key)
        if data is None:
            return None
        entry, _ = unpack(data, f"{self.name}: {key}")
        if entry.key != key:
            raise StorageError(f"'{self.name}' is damaged: under '{key}' lies '{entry.key}'")
        return entry

    def _sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of the records under keys that begin with `prefix`."""
        with self._reading():
            self._system.invalidate_cache()
            files = self._system.find(self._memories, maxdepth=1, detail=True)
        sizes = {str(path).rsplit("/", 1)[-1]: item["size"] for path, item in files.items()}
        return {
            key: size
            for name, size in sizes.items()
            if name.endswith(_SUFFIX) and (key := _key(name)).startswith(prefix)
        }

    def _all_earlier(self, prefix: str) -> Sequence[tuple[str, int]]:
        """Return the keys that begin with `prefix` and the bytes of all earlier records."""
        with self._reading():
            self._system.invalidate_cache()
            files = self._system.find(self._earlier, detail=True)
        found = [(_key(str(path).split("/")[-2]), item["size"]) for path, item in files.items()]
        return [(key, size) for key, size in found if key.startswith(prefix)]

    def _archive(self, entry: Entry) -> None:
        """Copy the record that `entry` will replace behind the earlier ones; or drop them, if it is there no more."""
        before = self.get(entry.key)
        if before is None or unpack(before, f"{self.name}: {entry.key}")[0].expired(entry.created):
            self._forget(entry.key)
            return
        last = max(self._numbers(entry.key), default=0)
        self._write(self._path(entry.key, last + 1), before)

    def _numbers(self, key: str) -> Sequence[int]:
        """Return the numbers of the earlier records of a key, oldest first."""
        with self._reading():
            self._system.invalidate_cache()
            paths = self._system.find(self._path(key, None), maxdepth=1)
        names = [str(path).rsplit("/", 1)[-1] for path in paths]
        return sorted(int(name) for name in names if name.isdecimal())

    def _forget(self, key: str) -> None:
        """Remove all earlier records of a key, and the folder that has its name."""
        folder = self._path(key, None)
        with self._reading(), suppress(FileNotFoundError):
            if self._system.exists(folder):
                self._system.rm(folder, recursive=True)

    def _remove(self, path: str) -> bool:
        """Remove an object, and return whether it was there."""
        with self._reading(), suppress(FileNotFoundError):
            if self._system.exists(path):
                self._system.rm_file(path)
                return True
        return False

    def _path(self, key: str, number: int | None = 0) -> str:
        """Return where a record lies: that of a key, its earlier one of that number, or the folder of the latter."""
        # Percent signs leave no separators, and the ending no ".." of its own.
        name = quote(key, safe="") + _SUFFIX
        if len(name) > _MAX_NAME:
            raise InputError(
                f"the key '{key[:40]}…' is too long for a name in '{self.name}': "
                f"{len(name)} characters of at most {_MAX_NAME}, each that is no letter, digit or one of -_.~ "
                f"counting three for each of its bytes"
            )
        if number == 0:
            return f"{self._memories}/{name}"
        folder = f"{self._earlier}/{name}"
        return folder if number is None else f"{folder}/{number:010}"

    def _read(self, path: str) -> bytes | None:
        with self._reading(), suppress(FileNotFoundError):
            return bytes(self._system.cat_file(path))
        return None

    def _write(self, path: str, data: bytes) -> None:
        if isinstance(self._system, LocalFileSystem):
            make_folder(Path(path).parent)
            write_bytes(Path(path), data, private=True)
            return
        with self._reading():
            self._system.pipe_file(path, data)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # every file system raises its own
            reason = (
                os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            )
            raise StorageError(f"the store '{self.name}' cannot be used: {reason}") from None


def _key(name: str) -> str:
    return unquote(name.removesuffix(_SUFFIX))
