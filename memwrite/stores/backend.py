"""Where a store keeps its bytes: what the embedded database and the file systems of fsspec have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Protocol

from memwrite.stores.record import Entry


class StoreBackend(Protocol):
    """Records under keys, and the provenances that they name. What it has taken outlives the process.

    Every method raises StorageError where the place cannot be used.
    """

    name: str

    def put(
        self, provenances: Sequence[tuple[str, bytes]], records: Sequence[tuple[Entry, bytes]]
    ) -> None:
        """Keep records, each in place of any that has its key; the provenances first, each under its digest."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return the record of a key, if there is one."""
        ...

    def provenance(self, digest: str) -> bytes | None:
        """Return the provenance of that digest, if there is one."""
        ...

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of those keys that are there."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield all entries whose keys begin with `prefix`, by key."""
        ...

    def delete(self, keys: Sequence[str]) -> int:
        """Remove records without a trace, and return how many were there."""
        ...

    def expire(self, now: datetime) -> int:
        """Remove what has expired by `now`, and return how many records that were."""
        ...

    def size(self) -> tuple[int, int]:
        """Return the number of records and of their bytes."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...
