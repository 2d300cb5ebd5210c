"""What tests of stores share: a memory, states, a place of every kind, and what a store has to be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from postgres_server import empty_database
from support import MODELS

from memwrite import Memory, MemoryState
from memwrite.errors import StorageError
from memwrite.stores import Store

CONFIG = {
    "backbone": MODELS["llama"],
    "writer": {"name": "gradient", "params": {"slots": 2}},
    "reader": {"name": "prefix"},
}
MEMORY = Memory.from_config(CONFIG)
PLACES: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: str(folder / "store.db"),
    "folder": lambda folder: f"file://{folder}/store",
    "postgresql": lambda _: empty_database(),
    "objects": lambda folder: f"memory://{folder}/store",
}
GONE = timedelta(seconds=-1)
KEYS = st.sampled_from(["a", "..", "a/b", "../ü ñ", "x" * 190, "'; DROP"])


def some(number: int) -> MemoryState:
    """A state that differs from those of other numbers."""
    spec = MEMORY.writer.spec
    values = torch.randn(1, *spec.shapes["memory"], generator=torch.Generator().manual_seed(number))
    return MemoryState(spec, {"memory": values})


class Stored(RuleBasedStateMachine):
    """Against lists of states, newest first; views of tenants among the keys, each against its own part."""

    kind = "sqlite"

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.place = PLACES[self.kind](Path(self.folder.name))
        self.root = Store(self.place)
        self.tenant = ""
        self.chains: dict[str, list[tuple[int, bool]]] = {}

    @property
    def store(self) -> Store:
        return self.root.within(self.tenant) if self.tenant else self.root

    @property
    def held(self) -> dict[str, list[tuple[int, bool]]]:
        """What the store that is being used should hold."""
        before = f"{self.tenant}/" if self.tenant else ""
        found = {k.removeprefix(before): c for k, c in self.chains.items() if k.startswith(before)}
        return found

    def alive(self, key: str) -> list[int]:
        chain = self.held.get(key, [(0, True)])
        return [] if chain[0][1] else [number for number, gone in chain if not gone]

    def keep(self, key: str, state: tuple[int, bool], keep: int) -> None:
        place = f"{self.tenant}/{key}" if self.tenant else key
        chain = self.chains.get(place, [])
        self.chains[place] = [state, *([] if not chain or chain[0][1] else chain[:keep])]

    @rule(tenant=st.sampled_from(["", "a", "%2F"]))
    def turn_to(self, tenant: str) -> None:
        self.tenant = tenant

    @rule(
        key=KEYS,
        states=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=4),
        keep=st.integers(0, 3),
    )
    def put(self, key: str, states: list[tuple[int, int]], keep: int) -> None:
        for number, fate in states:
            lifetime = GONE if fate == 3 else None
            self.store.put(key, MEMORY, some(number), lifetime=lifetime, keep=keep)
            self.keep(key, (number, fate == 3), keep)
        self.get(key)

    @rule(keys=st.lists(KEYS, unique=True, min_size=1, max_size=3), keep=st.integers(0, 2))
    def put_rows(self, keys: list[str], keep: int) -> None:
        rows = MemoryState.stack([some(n) for n in range(len(keys))])
        self.store.put_rows(keys, MEMORY, rows, texts=keys, keep=keep)
        for number, key in enumerate(keys):
            self.keep(key, (number, False), keep)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        alive = self.alive(key)
        if alive:
            assert torch.equal(self.store.get(key, MEMORY)["memory"], some(alive[0])["memory"])
        else:
            with pytest.raises(StorageError, match="holds nothing"):
                self.store.get(key, MEMORY)
        told = [e.nbytes for e in self.store.history(key)]
        assert len(told) == len(alive[1:])
        assert all(told)

    @rule(key=KEYS, steps=st.integers(1, 3), puts=st.integers(0, 4))
    def rollback(self, key: str, steps: int, puts: int) -> None:
        """Behind some puts: else it would seldom find that many states."""
        for number in range(puts):
            self.put(key, [(number, 0)], 3)
        if len(self.alive(key)) <= steps:
            with pytest.raises(StorageError, match="earlier states"):
                self.store.rollback(key, steps)
            return
        self.store.rollback(key, steps)
        chain = self.held[key]
        place = [turn for turn, (_, gone) in enumerate(chain) if not gone][steps]
        self.chains[f"{self.tenant}/{key}" if self.tenant else key] = chain[place:]
        self.get(key)

    @rule(prefix=st.sampled_from(["", "a", "a/", "..", "zz"]))
    def look(self, prefix: str) -> None:
        alive = sorted(key for key in self.held if self.alive(key))
        assert [e.key for e in self.store.list(prefix)] == [
            k for k in alive if k.startswith(prefix)
        ]
        asked = [key for key in self.held if len(key.encode()) <= 190]
        assert sorted(self.store.find([*asked, "nobody"])) == [k for k in alive if k in asked]
        size = self.store.size()
        assert size.memories == len(self.held)
        assert (size.nbytes == 0) == (not self.held)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.store.delete(key) == (key in self.held)
        self.chains.pop(f"{self.tenant}/{key}" if self.tenant else key, None)

    @rule()
    def expire(self) -> None:
        gone = [key for key, chain in self.held.items() if chain[0][1]]
        assert self.store.expire() == len(gone)
        for key, chain in self.held.items():
            place = f"{self.tenant}/{key}" if self.tenant else key
            self.chains[place] = [state for state in chain if not state[1]]
            if key in gone:
                del self.chains[place]

    @rule()
    def reopen(self) -> None:
        self.root.close()
        self.root = Store(self.place, make=False)

    def teardown(self) -> None:
        self.root.close()
        self.folder.cleanup()
