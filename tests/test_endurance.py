"""Long and hard runs: memory stays flat, a full disk loses nothing, threads share a store."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support import MODELS, SOAK

from memwrite import Memory, MemoryState
from memwrite.errors import StorageError
from memwrite.inference.prefill_cache import PrefillCache
from memwrite.stores import Store
from memwrite.training.run import train

MEMORY = Memory.from_config(
    {
        "backbone": MODELS["gpt2"],
        "writer": {"name": "gradient", "params": {"slots": 2}},
        "reader": {"name": "prefix"},
    }
)
MEMORY.prefills = PrefillCache(1 << 16)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_stays_flat() -> None:
    """Over writes, questions and a cache that is always full: 150 of them, and 10,000 in a soak."""

    def work(count: int) -> None:
        for number in range(count):
            state = MEMORY.write(f"document {number}").state
            MEMORY.ask(state, "do", max_new_tokens=2)

    work(50)
    before = resident()
    work(min(round(150 * SOAK), 10_000))
    assert resident() - before < 16 << 20


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_a_full_disk_loses_nothing(kind: str, tmp_path: Path) -> None:
    """What was acknowledged is there, what was not is told in a sentence, and later there is room again."""
    place = tmp_path / "s.db" if kind == "sqlite" else f"file://{tmp_path}/s"
    state = MEMORY.write("x").state
    large = MemoryState.stack([state] * 40)
    kept: list[str] = []
    with Store(place) as store:
        store.put("first", MEMORY, state)

        def fill() -> None:
            for number in range(100):
                keys = [f"{number}-{row}" for row in range(40)]
                store.put_rows(keys, MEMORY, large)
                kept.extend(keys)

        with full_disk(40_000 if kind == "sqlite" else 500), pytest.raises(StorageError) as caught:
            fill()
        assert "\n" not in str(caught.value)
        store.put("last", MEMORY, state)
        there = {entry.key for entry in store.list()}
        assert {"first", "last", *kept} <= there
        for key in there:
            assert torch.equal(store.get(key, MEMORY)["memory"], state["memory"])


def test_a_training_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """It ends in a sentence, whichever of its files does not fit, and then with the bytes of an undisturbed one."""
    config = {
        "backbone": {**MODELS["gpt2"], "tokenizer": "characters", "trainable": True},
        "writer": {"name": "gradient", "params": {"slots": 2, "order": "none"}},
        "reader": {"name": "prefix"},
        "task": {"name": "kv-retrieval", "params": {"pairs": 1, "examples": 2}},
        "training": {"steps": 6, "batch_size": 2, "warmup": 1, "every": 2},
    }
    whole = train(config, [f"training.out={tmp_path / 'whole'}"])
    model = (whole / "backbone" / "model.safetensors").stat().st_size
    cut, told = [f"training.out={tmp_path / 'cut'}"], []
    # Too little for its config, for its weights, for its optimizer's moments.
    for size in (50, model // 2, model + 20_000):
        with full_disk(size), pytest.raises(StorageError, match=str(tmp_path)) as caught:
            train(config, cut)
        told.append(str(caught.value))
    assert not any("\n" in sentence for sentence in told)
    assert len({*told}) == 3
    again = train(config, cut)
    for name in ("weights.safetensors", "backbone/model.safetensors"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_threads_share_a_store(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "s.db" if kind == "sqlite" else f"file://{tmp_path}/s"
    states = [MEMORY.write(f"text {number}").state for number in range(8)]

    def work(number: int) -> list[Any]:
        found = []
        for turn in range(10):
            store.put(f"{number}-{turn}", MEMORY, states[number])
            found.append(store.get(f"{number}-{turn}", MEMORY)["memory"])
        return found

    with Store(place) as store, ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(work, range(8))):
            assert all(torch.equal(one, states[number]["memory"]) for one in found)
        assert store.size().memories == 80


def test_a_place_that_cannot_be_written_says_so() -> None:
    for place in ("/proc/s.db", "file:///proc/s"):
        with pytest.raises(StorageError, match=r"/proc/s"):
            Store(place)
