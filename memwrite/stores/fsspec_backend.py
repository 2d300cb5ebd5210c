"""Any place that fsspec knows: a folder, a bucket, another machine. One object for each memory."""

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

_ENDING = ".memory"
_LONGEST_NAME = 240


class FsspecBackend:
    """See `StoreBackend`. Each object is written whole or not at all; a put of several may be cut off between two.

    Args:
        url: as in "s3://bucket/folder" or "file:///srv/memories".
        make: whether to make it if it is not there.

    Raises:
        StorageError: fsspec does not know such places, or cannot reach it.
    """

    def __init__(self, url: str, make: bool) -> None:
        self.name = url
        with self._reading():
            self._system, root = fsspec.core.url_to_fs(url)
            self._memories, self._recipes = f"{root}/memories", f"{root}/recipes"
            if not make and not self._system.exists(self._memories):
                raise StorageError(f"there is no store at '{url}'")
            for folder in (self._memories, self._recipes):
                self._system.makedirs(folder, exist_ok=True)

    def put(
        self, recipes: Sequence[tuple[str, bytes]], records: Sequence[tuple[Entry, bytes]]
    ) -> None:
        """One after the other."""
        paths = [self._path(entry.key) for entry, _ in records]
        for digest, data in recipes:
            path = f"{self._recipes}/{digest}"
            with self._reading():
                known = self._system.exists(path)
            if not known:
                self._write(path, data)
        for path, (_, data) in zip(paths, records, strict=True):
            self._write(path, data)

    def get(self, key: str) -> bytes | None:
        """The record of a key."""
        return self._read(self._path(key))

    def recipe(self, digest: str) -> bytes | None:
        """A recipe."""
        return self._read(f"{self._recipes}/{digest}")

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those of the keys that are there."""
        found = {key: self._entry(key) for key in keys}
        return {key: entry for key, entry in found.items() if entry is not None}

    def list(self, prefix: str) -> Iterator[Entry]:
        """All entries whose keys begin so, by key; each is read for it."""
        with self._reading():
            self._system.invalidate_cache()
            names = [
                str(path).rsplit("/", 1)[-1] for path in self._system.ls(self._memories, False)
            ]
        keys = [unquote(name.removesuffix(_ENDING)) for name in names if name.endswith(_ENDING)]
        for key in sorted(keys):
            if key.startswith(prefix) and (entry := self._entry(key)) is not None:
                yield entry

    def delete(self, keys: Sequence[str]) -> int:
        """Remove records; how many were there."""
        gone = 0
        for key in keys:
            path = self._path(key)
            with self._reading(), suppress(FileNotFoundError):
                self._system.rm_file(path)
                gone += 1
        return gone

    def expire(self, now: datetime) -> int:
        """Remove what has expired by `now`; how many that were."""
        return self.delete([entry.key for entry in self.list("") if entry.expired(now)])

    def size(self) -> tuple[int, int]:
        """The number of records and of their bytes."""
        with self._reading():
            self._system.invalidate_cache()
            found = self._system.ls(self._memories, True)
        sizes = [item["size"] for item in found if item["name"].endswith(_ENDING)]
        return len(sizes), sum(sizes)

    def close(self) -> None:
        """Nothing is held."""

    def _entry(self, key: str) -> Entry | None:
        data = self.get(key)
        if data is None:
            return None
        entry, _ = unpack(data, f"{self.name}: {key}")
        if entry.key != key:
            raise StorageError(f"'{self.name}' is damaged: under '{key}' lies '{entry.key}'")
        return entry

    def _path(self, key: str) -> str:
        # Percent signs leave no separators, and the ending no ".." of its own.
        name = quote(key, safe="") + _ENDING
        if len(name) > _LONGEST_NAME:
            raise InputError(
                f"the key '{key[:40]}…' is too long for a name in '{self.name}': "
                f"{len(name)} characters of at most {_LONGEST_NAME}, each that is no letter, digit or one of -_.~ "
                f"counting three for each of its bytes"
            )
        return f"{self._memories}/{name}"

    def _read(self, path: str) -> bytes | None:
        with self._reading(), suppress(FileNotFoundError):
            return bytes(self._system.cat_file(path))
        return None

    def _write(self, path: str, data: bytes) -> None:
        if isinstance(self._system, LocalFileSystem):
            make_folder(Path(path).parent)
            write_bytes(Path(path), data)
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
