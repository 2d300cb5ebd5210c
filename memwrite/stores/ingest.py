"""Thousands of documents into a store: batched by length, resumable, in one process or several, or on a cluster.

Which documents share a batch depends on the file and the batch size alone, not on what is done already or on how many
processes work: so a run that was killed, and any number of processes, end with the same states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, islice
from typing import Any, TypeAlias

import torch

from memwrite.errors import ConfigError, DivergenceError, InputError
from memwrite.memory import Memory
from memwrite.state import MemoryState
from memwrite.stores.documents import Document, Documents, Skipped
from memwrite.stores.store import Store
from memwrite.utils.cpu import tuned_cpu
from memwrite.utils.extras import extra
from memwrite.utils.progress import Bar, counting

with extra("stores"):
    from accelerate import PartialState
    from accelerate.utils import gather_object

#: The number of documents that are sorted by length together.
WINDOW = 1024
#: Bytes of text, padded, in one batch.
MAX_BATCH_BYTES = 1 << 16


@dataclass
class Tally:
    """What became of the documents.

    Attributes:
        written: how many were written now.
        already: how many the store had, from the same text by the same writer.
        skipped: lines and rows that could not be written, with reasons.
    """

    written: int = 0
    already: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add what another process did."""
        self.written += other.written
        self.already += other.already
        self.skipped = sorted(
            [*self.skipped, *other.skipped], key=lambda line: (line.file, line.line)
        )


#: A batch, and the keys of those of its window that the store has already.
Turn: TypeAlias = tuple[Sequence[Document], set[str]]


@tuned_cpu()
def write_documents(
    memory: Memory,
    documents: Documents,
    store: Store,
    batch_size: int = 64,
    lifetime: timedelta | None = None,
    keep: int = 0,
    share: Callable[[Iterable[Turn], BatchWriter, Bar], None] | None = None,
) -> Tally:
    """Write every document into the store, except those that are there.

    Under torchrun each process takes its share, and each returns the tally of all. From here on the process keeps
    freed memory for itself, see `tuned_cpu`.

    Args:
        memory: that writes.
        documents: are read once.
        store: where each state goes under its document's id; a batch at a time, all or nothing.
        batch_size: documents, at most, that are written together. The states do not depend on it, except for
            rounding in the last digits.
        lifetime: how long what is written stays; by default for good.
        keep: how many earlier states a key has at most when it is written, see `Store.put`.
        share: writes the batches in place of this process, as `RayWorkers` does.

    Raises:
        InputError: the documents cannot be read, there are none, or they are a stream and several processes would share it.
        ConfigError: the writer's states grow with their texts.
        StorageError: the store cannot be used.
    """
    if not memory.writer.spec.bounded:
        raise ConfigError(
            f"the states of writer '{memory.config.writer.name}' grow with their texts: a store keeps those that do not"
        )
    # The first process to be done waits for the last one.
    processes = PartialState(
        cpu=memory.backbone.info.device.type == "cpu", timeout=timedelta(days=30)
    )
    documents.check_shared(processes.num_processes)
    writer = BatchWriter(memory, store.put_rows, {"lifetime": lifetime, "keep": keep})
    first = processes.is_main_process
    with counting(documents.count() if first else None, "write", "document", shown=first) as bar:
        skipped: list[Skipped] = []
        turns = _turns(documents, finder(memory, store), batch_size, skipped, bar)
        if share is not None:
            share(turns, writer, bar)
        else:
            for number, (batch, done) in enumerate(turns):
                if number % processes.num_processes == processes.process_index:
                    writer.write(batch, done)
                bar.update(len(batch))
    if first:
        writer.tally.add(Tally(skipped=skipped))
    return _gathered(writer.tally, processes)


def _turns(
    documents: Documents,
    find: Callable[[Sequence[Document]], set[str]],
    batch_size: int,
    skipped: list[Skipped],
    bar: Bar,
) -> Iterator[Turn]:
    empty = True
    for window, bad in _windows(documents.read()):
        skipped += bad
        bar.update(len(bad))
        done = find(window)
        for batch in plan(window, batch_size):
            empty = False
            yield batch, done
    if empty:
        raise InputError(f"'{documents.place}' holds no document, as in {documents.example}")


def plan(documents: Sequence[Document], batch_size: int) -> Iterator[list[Document]]:
    """Yield batches of documents of like length, shortest first, each document in one."""
    batch: list[Document] = []
    for document in sorted(documents, key=lambda d: (len(d.text.encode()), d.file, d.line)):
        width = len(document.text.encode())
        if batch and (len(batch) == batch_size or (len(batch) + 1) * width > MAX_BATCH_BYTES):
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def finder(memory: Memory, store: Store) -> Callable[[Sequence[Document]], set[str]]:
    """Return what finds the keys of those documents whose text this memory has written into the store."""
    is_ours = store.written_by(memory, memory.writer.init(1))

    def find(documents: Sequence[Document]) -> set[str]:
        entries = store.find([document.key for document in documents])
        return {
            document.key
            for document in documents
            if (entry := entries.get(document.key)) is not None
            and entry.text_digest == document.digest
            and is_ours(entry)
        }

    return find


@dataclass
class BatchWriter:
    """Writes batches of documents, and puts away the states.

    Attributes:
        memory: that writes.
        put: `Store.put_rows`, or what takes its place.
        options: of each put.
        tally: what became of the documents so far.
    """

    memory: Memory
    put: Callable[..., None]
    options: Mapping[str, Any]
    tally: Tally = field(default_factory=Tally)

    def write(self, batch: Sequence[Document], done: set[str]) -> None:
        """Write a batch whole, so that it is rounded as it always is, and keep what is not `done`."""
        self.tally.already += sum(document.key in done for document in batch)
        if all(document.key in done for document in batch):
            return
        for documents, state in self._states(batch):
            new = [row for row, document in enumerate(documents) if document.key not in done]
            self.keep(
                [documents[row] for row in new], state.rows(torch.tensor(new, dtype=torch.int64))
            )
            self.tally.written += len(new)

    def keep(self, documents: Sequence[Document], state: MemoryState) -> None:
        """Put away the states of documents, a row for each."""
        keys = [document.key for document in documents]
        texts = [document.text for document in documents]
        self.put(keys, self.memory, state, texts=texts, **self.options)

    def _states(
        self, batch: Sequence[Document]
    ) -> Iterator[tuple[Sequence[Document], MemoryState]]:
        """Yield what writing makes of a batch; documents that cannot be read or that diverge are skipped with a reason."""
        if not batch:
            return
        try:
            written = self.memory.write([document.text for document in batch])
        except InputError:
            readable = [document for document in batch if self._readable(document)]
            if len(readable) == len(batch):
                raise
            yield from self._states(readable)
        except DivergenceError as error:
            if len(batch) == 1:
                self._skip(batch[0], error)
                return
            diverged = set(error.rows or range(len(batch)))
            yield from chain.from_iterable(self._states([batch[row]]) for row in sorted(diverged))
            yield from self._states([d for row, d in enumerate(batch) if row not in diverged])
        else:
            yield batch, written.state.to("cpu")

    def _readable(self, document: Document) -> bool:
        try:
            self.memory.encode(document.text)
        except InputError as error:
            self._skip(document, error)
            return False
        return True

    def _skip(self, document: Document, error: Exception) -> None:
        self.tally.skipped.append(Skipped(document.file, document.line, str(error)))


def _windows(
    lines: Iterable[Document | Skipped],
) -> Iterator[tuple[list[Document], list[Skipped]]]:
    lines = iter(lines)
    while window := list(islice(lines, WINDOW)):
        yield (
            [line for line in window if isinstance(line, Document)],
            [line for line in window if isinstance(line, Skipped)],
        )


def _gathered(tally: Tally, processes: PartialState) -> Tally:
    if processes.num_processes == 1:
        return tally
    total = Tally()
    for part in gather_object([tally]):
        total.add(part)
    return total
