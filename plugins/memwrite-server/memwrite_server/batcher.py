"""Work for one model, from many requests at once: one thread that does what fits together in one batch."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Literal, Self

from memwrite.memory import Memory


class Job(ABC):
    """One request to a model. Its result says how many `tokens` it took.

    Attributes:
        counts: what these tokens were.
        future: takes the result. Who does not want it any more cancels it.
        unwanted: set where nobody waits for the result of a job that has begun.
        streamed: whether a part of the result has been handed on already.
    """

    counts: ClassVar[Literal["generated", "written"]]

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self.unwanted = threading.Event()
        self.streamed = False

    @property
    @abstractmethod
    def group(self) -> Hashable:
        """Return what jobs of one batch have in common."""

    @classmethod
    @abstractmethod
    def run(cls, memory: Memory, jobs: Sequence[Self]) -> Sequence[object]:
        """Do several jobs of one group, and return their results."""


class Batcher:
    """Does jobs in the order in which they came, and with the first those of its group.

    Args:
        memory: what runs the jobs.
        most: jobs in one batch.
        count: is called with the number of jobs of each batch.
    """

    def __init__(self, memory: Memory, most: int, count: Callable[[int], object]) -> None:
        self._memory, self._most, self._count = memory, most, count
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="memwrite-batcher", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Do what is waiting, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            self._count(len(jobs))
            self._do(jobs)

    def _next(self) -> list[Job]:
        """Return the next batch; [] where there will be none."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                first, others = self._waiting[0], deque[Job]()
                jobs: list[Job] = []
                for job in self._waiting:
                    fits = type(job) is type(first) and job.group == first.group
                    if not fits or len(jobs) == self._most:
                        others.append(job)
                    elif job.future.set_running_or_notify_cancel():
                        jobs.append(job)
                self._waiting = others
                if jobs:
                    return jobs

    def _do(self, jobs: Sequence[Job]) -> None:
        try:
            results = type(jobs[0]).run(self._memory, jobs)
        except Exception as error:
            if len(jobs) == 1 or any(job.streamed for job in jobs):
                for job in jobs:
                    job.future.set_exception(error)
                return
            # One request must not spoil its neighbours'.
            for job in jobs:
                self._do([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
