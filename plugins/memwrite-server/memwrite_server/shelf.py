"""The memories of all tenants, in one store; no call reaches another tenant's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from memwrite.errors import StorageError
from memwrite.memory import Memory
from memwrite.state import MemoryState
from memwrite.stores import Entry, Store
from memwrite.stores.record import LONGEST_KEY, check_key
from memwrite_server import errors
from memwrite_server.errors import ApiError


class Shelf:
    """Memories under keys, for each tenant by itself.

    In the store a key stands behind its tenant's name and a slash; names have no slash, so that no two tenants share one.

    Args:
        store: of all.
        models: the memories that write and read, by the names that clients know.
    """

    def __init__(self, store: Store, models: Mapping[str, Memory]) -> None:
        self._store, self._models = store, models
        self._wrote = {
            name: store.written_by(memory, memory.writer.init(1)) for name, memory in models.items()
        }

    def put(
        self, tenant: str, key: str, model: str, state: MemoryState, lifetime: timedelta | None
    ) -> Entry:
        """Keep a state under a key, in place of what was there."""
        place = _place(tenant, key)
        self._store.put(place, self._models[model], state, lifetime=lifetime)
        return self.entry(tenant, key)

    def entry(self, tenant: str, key: str) -> Entry:
        """Return what the store says of a memory.

        Raises:
            ApiError: the tenant has none under that key.
        """
        place = _place(tenant, key)
        entry = self._store.find([place]).get(place)
        if entry is None:
            raise errors.no_memory(key)
        return entry

    def get(self, tenant: str, key: str, model: str | None) -> tuple[str, MemoryState, Entry]:
        """Return the model that wrote a memory, its state, and what the store says of it.

        Args:
            tenant: who asks.
            key: of the memory.
            model: the model that is to read it; None for the one that wrote it.

        Raises:
            ApiError: the tenant has none under that key, or another model wrote it.
        """
        entry = self.entry(tenant, key)
        name = self._writer_of(entry, model)
        if name is None or model not in (None, name):
            raise ApiError(
                409,
                f"the memory '{key}' was written by {f'the model {name!r}' if name else 'a model that is not served'}"
                f"{'' if model is None else f', not by {model!r}'}",
                "other_model",
                "model",
            )
        try:
            return name, self._store.get(entry.key, self._models[name]), entry
        except StorageError:
            self.entry(tenant, key)  # deleted or expired in this moment
            raise

    def delete(self, tenant: str, key: str) -> None:
        """Remove a memory without a trace, from the prefill caches too.

        Raises:
            ApiError: the tenant has none under that key.
        """
        if not self._store.delete(_place(tenant, key)):
            raise errors.no_memory(key)
        for memory in self._models.values():
            if memory.prefills is not None:
                memory.prefills.clear()

    def list(self, tenant: str, prefix: str, after: str) -> Iterator[tuple[str, Entry]]:
        """Yield the tenant's keys that begin with `prefix` and come behind `after`, with what the store says of them."""
        for entry in self._store.list(f"{tenant}/{prefix}"):
            key = entry.key.removeprefix(f"{tenant}/")
            if key > after:
                yield key, entry

    def expire(self) -> int:
        """Remove what has expired, and return how many that were."""
        return self._store.expire()

    def described(self, key: str, entry: Entry, state: MemoryState | None = None) -> dict[str, Any]:
        """Return a memory as clients see it, with the size of its state where that is given."""
        sizes = {} if state is None else {"kind": state.spec.kind, "state_bytes": state.nbytes}
        return {
            "id": key,
            "object": "memory",
            "model": self._writer_of(entry, None),
            "created": int(entry.created.timestamp()),
            "expires": None if entry.expires is None else int(entry.expires.timestamp()),
            "stored_bytes": entry.nbytes,
            **sizes,
        }

    def looked_at(self, tenant: str, key: str) -> dict[str, Any]:
        """Return one memory as clients see it, whatever wrote it.

        Raises:
            ApiError: the tenant has none under that key.
        """
        entry = self.entry(tenant, key)
        return self.described(key, entry, self._store.file(entry.key).state)

    def _writer_of(self, entry: Entry, preferred: str | None) -> str | None:
        """Return the model that wrote a memory, the preferred one where several would have."""
        names = [name for name, wrote in self._wrote.items() if wrote(entry)]
        return preferred if preferred in names else next(iter(names), None)


def _place(tenant: str, key: str) -> str:
    """Return where the store keeps a tenant's key.

    Raises:
        InputError: it cannot be a key.
        ApiError: it is too long.
    """
    check_key(key)
    place = f"{tenant}/{key}"
    if len(place.encode()) > LONGEST_KEY:
        raise ApiError(
            400, f"the key '{key[:40]}…' is too long: {LONGEST_KEY - len(tenant) - 1} bytes at most"
        )
    return place
