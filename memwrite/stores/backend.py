"""Where a store keeps its bytes: what the embedded database and the places of fsspec have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Protocol

from memwrite.stores.record import Entry


class StoreBackend(Protocol):
    """Records under keys, and the recipes that they name. What it has taken outlives the process.

    Every method raises StorageError where the place cannot be used.
    """

    name: str

    def put(
        self, recipes: Sequence[tuple[str, bytes]], records: Sequence[tuple[Entry, bytes]]
    ) -> None:
        """Keep records, each instead of any that has its key; the recipes first."""
        ...

    def get(self, key: str) -> bytes | None:
        """The record of a key."""
        ...

    def recipe(self, digest: str) -> bytes | None:
        """A recipe."""
        ...

    def find(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those of the keys that are there."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """All entries whose keys begin so, by key."""
        ...

    def delete(self, keys: Sequence[str]) -> int:
        """Remove records; how many were there. Nothing of them is left in the place."""
        ...

    def expire(self, now: datetime) -> int:
        """Remove what has expired by `now`; how many that were."""
        ...

    def size(self) -> tuple[int, int]:
        """The number of records and of their bytes."""
        ...

    def close(self) -> None:
        """Let go of the place."""
        ...
