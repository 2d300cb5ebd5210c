"""Writing in bulk on a cluster of Ray: one process reads the documents and plans the batches, actors write them.

The batches are those of one process, so that the states are, too: Ray's own data sets would cut and order them by themselves.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from memwrite.errors import ConfigError, MemwriteError
from memwrite.memory import Memory
from memwrite.state import MemoryState
from memwrite.stores.documents import Document
from memwrite.stores.ingest import BatchWriter, Tally, Turn, finder
from memwrite.stores.store import Store, provenance_of
from memwrite.utils.cpu import tuned_cpu
from memwrite.utils.extras import extra
from memwrite.utils.progress import Bar

with extra("ray"):
    import ray

#: Batches that a worker has at a time, so that it need not wait for the next one.
AHEAD = 2
#: How many more times a batch is tried when its worker was killed.
RETRIES = 3
#: Protocols of places that other machines, or other processes, have for themselves.
_OWN = "", "file", "local", "memory"
#: Keys and the state of their rows, on their way to the store.
Put = tuple[Sequence[str], MemoryState]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
        source: of its memory, as `Memory.from_config` takes it; what it names must be there on every machine.
        overrides: likewise.
        chat: whether the memory chats.
        provenance: digest of what is to be written by, see `Provenance`.
        folder: in which relative paths begin.
        store: that it puts states into by itself; None where they are sent back.
        options: of each put.
    """

    source: str | Mapping[str, Any]
    overrides: Sequence[str]
    chat: bool
    provenance: str
    folder: str
    store: str | None
    options: Mapping[str, Any]


class Worker:
    """Writes batches with a memory of its own, which it builds before the first one, and again in a process that follows."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def write(self, batch: Sequence[Document], done: set[str]) -> tuple[Tally, list[Put]]:
        """Write a batch; return what became of it, and the states unless they are in the store.

        Raises:
            ConfigError: the memory of this machine is not the one that is to write.
            StorageError: the store cannot be used.
        """
        back: list[Put] = []

        def send(
            keys: Sequence[str], memory: Memory, state: MemoryState, **options: object
        ) -> None:
            back.append((keys, state))

        if self._store is not None:
            # Where it was killed behind its put, all is done.
            done = finder(self._memory, self._store)(batch)
        put = send if self._store is None else self._store.put_rows
        writer = BatchWriter(self._memory, put, self.job.options)
        with tuned_cpu():
            writer.write(batch, done)
        return writer.tally, back

    @cached_property
    def _memory(self) -> Memory:
        folder = self.job.folder
        with chdir(folder) if os.path.isdir(folder) else nullcontext():
            memory = Memory.from_config(self.job.source, self.job.overrides)
        memory.chat = self.job.chat
        if provenance_of(memory, memory.writer.init(1)).digest != self.job.provenance:
            raise ConfigError(
                f"the machine '{os.uname().nodename}' has another model or writer than the one that began: give all machines "
                f"the same files and versions"
            )
        return memory

    @cached_property
    def _store(self) -> Store | None:
        return None if self.job.store is None else Store(self.job.store, make=False)


@dataclass
class RayWorkers:
    """Shares batches among actors of Ray, see `write_documents`.

    They run where RAY_ADDRESS or `ray.init` says, or on this machine alone.

    Attributes:
        source: as `Memory.from_config` takes it.
        overrides: likewise.
        place: of the store. If it is a URL that every machine reaches, the workers put states into it themselves; if it
            is a file or a folder, they send them to this process, which does.
        count: number of workers; by default one for each processor, or each GPU where the memory is on one.
    """

    source: str | Mapping[str, Any]
    overrides: Sequence[str]
    place: str
    count: int | None = None
    actors: list[Any] = field(default_factory=list, init=False)

    def __call__(self, turns: Iterable[Turn], writer: BatchWriter, bar: Bar) -> None:
        """Write every batch; what became of them is added to the writer's tally.

        Raises:
            ConfigError: a machine has another memory, or its worker was killed again and again.
            StorageError: the store cannot be used.
        """
        # Ray tells of workers that die, which is no result.
        with redirect_stdout(sys.stderr), _cluster():
            self._start(writer)
            try:
                self._share(turns, writer, bar)
            finally:
                for actor in self.actors:
                    ray.kill(actor)

    def _start(self, writer: BatchWriter) -> None:
        memory = writer.memory
        needed = "CPU" if memory.backbone.info.device.type == "cpu" else "GPU"
        count = self.count or max(1, int(ray.cluster_resources().get(needed, 0)))
        job = Job(
            self.source,
            self.overrides,
            memory.chat,
            provenance_of(memory, memory.writer.init(1)).digest,
            os.getcwd(),
            self.place if shared(self.place) else None,
            writer.options,
        )
        kind = ray.remote(Worker).options(
            num_cpus=1, num_gpus=int(needed == "GPU"), max_restarts=-1, max_task_retries=RETRIES
        )
        self.actors = [kind.remote(job) for _ in range(count)]

    def _share(self, turns: Iterable[Turn], writer: BatchWriter, bar: Bar) -> None:
        running: dict[Any, tuple[int, Sequence[Document]]] = {}

        def finish(most: int) -> None:
            while len(running) > most:
                (ref,), _ = ray.wait([*running], num_returns=1)
                _, batch = running.pop(ref)
                tally, puts = _result(ref, batch)
                by_key = {document.key: document for document in batch}
                for keys, state in puts:
                    writer.keep([by_key[key] for key in keys], state)
                writer.tally.add(tally)
                bar.update(len(batch))

        for batch, done in turns:
            if all(document.key in done for document in batch):
                writer.tally.already += len(batch)
                bar.update(len(batch))
                continue
            finish(AHEAD * len(self.actors) - 1)
            busy = Counter(worker for worker, _ in running.values())
            worker = min(range(len(self.actors)), key=lambda number: busy[number])
            running[self.actors[worker].write.remote(batch, done)] = worker, batch
        finish(0)


def shared(place: str) -> bool:
    """Return whether every machine reaches the store at `place` under this name."""
    return place.partition("://")[0] not in _OWN if "://" in place else False


def _result(ref: Any, batch: Sequence[Document]) -> tuple[Tally, list[Put]]:
    try:
        found: tuple[Tally, list[Put]] = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MemwriteError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError:
        raise ConfigError(
            f"the workers of Ray that wrote '{batch[0].file}', line {batch[0].line} and others with it were killed "
            f"{RETRIES + 1} times: give them more memory, or a smaller --batch-size"
        ) from None
    return found


@contextmanager
def _cluster() -> Iterator[None]:
    """Connect to the cluster, or start one of this machine, unless this process is connected."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()
