"""What a server does, apart from HTTP: memories of tenants, written and asked in batches within limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

from memwrite.backbones.segmentation import TextOrMessages
from memwrite.inference.prefill_cache import PrefillCache
from memwrite.memory import Memory
from memwrite.session import Session
from memwrite.state import MemoryState, Tokens
from memwrite.stores import Entry, Store
from memwrite_server.batcher import Batcher, Job
from memwrite_server.errors import ApiError
from memwrite_server.gate import Gate
from memwrite_server.jobs import Answer, Ask, Write, Written
from memwrite_server.metrics import Metrics
from memwrite_server.settings import Settings
from memwrite_server.shelf import Shelf
from memwrite_server.tenants import Tenants


class Service:
    """Memories of several tenants, and the models that write and read them.

    Args:
        models: by the names that clients know, at least one.
        store: of all memories.
        tenants: who may use it.
        settings: limits.
    """

    def __init__(
        self,
        models: Mapping[str, Memory],
        store: Store,
        tenants: Tenants,
        settings: Settings | None = None,
    ) -> None:
        self.models, self.tenants = models, tenants
        self.settings = settings or Settings()
        for memory in models.values():
            memory.prefills = PrefillCache(self.settings.prefills)
        self.shelf = Shelf(store, models)
        self.gate = Gate(self.settings.waiting, self.settings.each)
        self.metrics = Metrics()
        self.batchers = {
            name: Batcher(memory, self.settings.batch, self.metrics.batches.labels(name).observe)
            for name, memory in models.items()
        }
        self._watch()
        # Who changes a memory must not lose what another request writes into it.
        self._changing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def _watch(self) -> None:
        self.metrics.watch("under_way", lambda: len(self.gate))
        self.metrics.watch("waiting", lambda: sum(map(len, self.batchers.values())))
        caches = [memory.prefills for memory in self.models.values()]
        self.metrics.watch(
            "prefilled_bytes", lambda: sum(cache.nbytes for cache in caches if cache is not None)
        )

    def close(self) -> None:
        """Finish what has begun."""
        for batcher in self.batchers.values():
            batcher.close()

    def model(self, name: str | None) -> str:
        """Return the name of the model that is meant: the only one where nothing is said.

        Raises:
            ApiError: it is not served, or several are and none is named.
        """
        known = ", ".join(self.models)
        if name is None and len(self.models) == 1:
            return next(iter(self.models))
        if name is None:
            raise ApiError(400, f"name one of the models {known}", "model_required", "model")
        if name not in self.models:
            raise ApiError(
                404, f"there is no model '{name}' (served: {known})", "model_not_found", "model"
            )
        return name

    async def put(
        self, tenant: str, key: str, text: str, model: str | None, expires_in: float | None
    ) -> tuple[Written, Entry]:
        """Write a text into a new memory, and keep it under a key in place of what was there."""
        name = self.model(model)
        async with self._change(tenant, key):
            written: Written = await self.do(name, Write(text))
            lifetime = None if expires_in is None else timedelta(seconds=expires_in)
            return written, await asyncio.to_thread(
                self._put, tenant, key, name, written.state, lifetime
            )

    async def append(self, tenant: str, key: str, text: str) -> tuple[Written, Entry]:
        """Write a text into a memory, which lives no longer for it."""
        async with self._change(tenant, key):
            name, state, entry = await asyncio.to_thread(self.shelf.get, tenant, key, None)
            written: Written = await self.do(name, Write(text, state))
            lifetime = entry.left(datetime.now(UTC))
            return written, await asyncio.to_thread(
                self._put, tenant, key, name, written.state, lifetime
            )

    async def fork(self, tenant: str, key: str, to: str, expires_in: float | None) -> Entry:
        """Keep a copy of a memory under another key.

        Raises:
            ApiError: there is something under that key.
        """
        name, state, entry = await asyncio.to_thread(self.shelf.get, tenant, key, None)
        lifetime = entry.left(datetime.now(UTC))
        if expires_in is not None:
            lifetime = timedelta(seconds=expires_in)
        async with self._change(tenant, to):
            try:
                await asyncio.to_thread(self.shelf.entry, tenant, to)
            except ApiError as error:
                if error.status_code != 404:
                    raise
                return await asyncio.to_thread(self._put, tenant, to, name, state, lifetime)
        raise ApiError(409, f"there is a memory '{to}' already: delete it first", "exists", "to")

    async def delete(self, tenant: str, key: str) -> None:
        """Remove a memory."""
        async with self._change(tenant, key):
            await asyncio.to_thread(self.shelf.delete, tenant, key)

    async def state(
        self, tenant: str, key: str | None, model: str | None
    ) -> tuple[str, MemoryState]:
        """Return a memory's state and the model to read it; without a key, one that has read nothing."""
        if key is None:
            name = self.model(model)
            return name, self.models[name].writer.init(1)
        if model is not None:
            self.model(model)
        name, state, _ = await asyncio.to_thread(self.shelf.get, tenant, key, model)
        return name, state

    async def prompt(
        self, model: str, state: MemoryState, asked: TextOrMessages, raw: bool | None = None
    ) -> Tokens:
        """Return a prompt or chat messages as the model reads them behind a state."""
        memory = self.models[model]
        if isinstance(asked, str):
            return await asyncio.to_thread(memory.prompt, state, asked, raw)
        session = Session(memory, state, read_only=True)
        return await asyncio.to_thread(session.prompt, asked)

    async def do(self, model: str, job: Job) -> Any:
        """Do a job and return its result.

        Raises:
            ApiError: it took too long.
        """
        self._submit(model, job)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job.future), self.settings.seconds)
        except TimeoutError:
            raise self._late() from None
        finally:
            job.unwanted.set()

    async def stream(
        self, model: str, make: Callable[[Callable[[str], object]], Ask]
    ) -> AsyncIterator[str | Answer]:
        """Yield the pieces of an answer as they come, and the whole of it in the end.

        Args:
            model: the model.
            make: gives the job, which is to hand its pieces to the function that it is given.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | Answer | BaseException] = asyncio.Queue()

        def receive(piece: str | Answer | BaseException) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def done(future: Future[Answer]) -> None:
            if not future.cancelled():
                receive(future.exception() or future.result())

        job = make(receive)
        job.future.add_done_callback(done)
        deadline = loop.time() + self.settings.seconds
        self._submit(model, job)
        try:
            while True:
                left = deadline - loop.time()
                piece = await asyncio.wait_for(pieces.get(), left)
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if isinstance(piece, Answer):
                    return
        except TimeoutError:
            raise self._late() from None
        finally:
            job.unwanted.set()
            job.future.cancel()

    def admitted(self, tenant: str) -> AbstractContextManager[None]:
        """Be one of the requests to models that are under way; see `Gate.enter`."""
        return self.gate.enter(tenant)

    def _submit(self, model: str, job: Job) -> None:
        tokens = self.metrics.tokens.labels(model, job.counts)

        def count(future: Future[Any]) -> None:
            if not future.cancelled() and future.exception() is None:
                tokens.inc(future.result().tokens)

        job.future.add_done_callback(count)
        self.batchers[model].submit(job)

    def _late(self) -> ApiError:
        return ApiError(
            504,
            f"the request took more than {self.settings.seconds:g} seconds, which is as long as this server takes",
            "timeout",
        )

    def _change(self, tenant: str, key: str) -> asyncio.Lock:
        lock = self._changing.get((tenant, key))
        if lock is None:
            lock = self._changing[tenant, key] = asyncio.Lock()
        return lock

    def _put(
        self, tenant: str, key: str, model: str, state: MemoryState, lifetime: timedelta | None
    ) -> Entry:
        return self.shelf.put(tenant, key, model, state, lifetime)
