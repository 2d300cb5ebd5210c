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
        self,
        provenances: Sequence[tuple[str, bytes]],
        records: Sequence[tuple[Entry, bytes]],
        keep: int = 0,
    ) -> None:
        """Keep records in their order, the provenances first, each under its digest.

        Each record takes the place of the one under its key. That one becomes the newest of the earlier records of the
        key, of which `keep` are left; but one that had expired when the new record was created goes, with all before it.
        """
        ...

    def get(self, key: str) -> bytes | None:
        """Return the record of a key, if there is one."""
        ...

    def states(self, key: str) -> Sequence[bytes]:
        """Return the record of a key and its earlier records, newest first; none where there is no record."""
        ...

    def rollback(self, key: str, steps: int, now: datetime) -> bool:
        """Put back the record of `steps` records ago, counting those that live, and drop what came after it.

        Returns:
            Whether there was such a record, behind one that lives.
        """
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
        """Remove records and their earlier ones without a trace, and return how many keys had one."""
        ...

    def expire(self, now: datetime, prefix: str = "") -> int:
        """Remove what has expired by `now` under keys that begin with `prefix`, and return from how many.

        A record takes its earlier ones with it. An earlier one that expires goes alone and is not counted.
        """
        ...

    def size(self, prefix: str = "") -> tuple[int, int]:
        """Return the number of keys that begin with `prefix`, and of the bytes of all their records, earlier ones too."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...
