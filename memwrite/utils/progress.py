"""What takes a while says so on standard error: always within `show_progress`, and else only where somebody is watching."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

from tqdm import tqdm

T = TypeVar("T")

#: Seconds between the lines that a log gets, and before the first one.
EVERY = 10.0
PATIENCE = 3.0
#: Lines over which the rate is taken.
RECENT = 6

_shown: ContextVar[bool] = ContextVar("memwrite_progress", default=False)


@contextmanager
def show_progress() -> Iterator[None]:
    """Within this, `track` and `announcing` tell how far they are; the command line does so."""
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


def announce(sentence: str) -> None:
    """Say on standard error what takes a while, where somebody is watching or wants to know."""
    if _shown.get() or sys.stderr.isatty():
        print(sentence, file=sys.stderr, flush=True)


@contextmanager
def announcing(sentence: str) -> Iterator[None]:
    """Say so when what is done within this takes more than a few seconds, and again every ten."""
    if not _shown.get():
        yield
        return
    done, start = threading.Event(), time.monotonic()

    def tell() -> None:
        wait = PATIENCE
        while not done.wait(wait):
            print(f"{sentence} ... {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            wait = EVERY

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def track(steps: Iterable[T], label: str, unit: str = "step") -> Iterator[T]:
    """Yield the same items, and show how many are done, as `counting` does."""
    with counting(len(steps) if isinstance(steps, Sized) else None, label, unit) as bar:
        for item in steps:
            yield item
            bar.update(1)


class Bar(Protocol):
    """Shows how much is done."""

    def update(self, n: int, /) -> object:
        """Count `n` more."""
        ...


@contextmanager
def counting(total: int | None, label: str, unit: str, shown: bool = True) -> Iterator[Bar]:
    """Give what shows how many units of `total` are done: a bar on a terminal, else a line every ten seconds."""
    shown = shown and _shown.get()
    if shown and not sys.stderr.isatty():
        yield _Log(total, label, unit)
        return
    with tqdm(total=total, desc=label, unit=unit, leave=False, disable=not shown) as bar:
        yield bar


class _Log:
    def __init__(self, total: int | None, label: str, unit: str) -> None:
        self._total, self._label = total, label
        self._units = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
        self._done, self._start = 0, time.monotonic()
        #: When lines were written, and how much was done: the rate is that of late, since what is only found done goes fast.
        self._lines = deque([(self._start, 0)], maxlen=RECENT + 1)

    def update(self, n: int, /) -> None:
        self._done += n
        now = time.monotonic()
        (first, before), (last, _) = self._lines[0], self._lines[-1]
        if now - last < EVERY or not self._done:
            return
        self._lines.append((now, self._done))
        rate = (self._done - before) / (now - first)
        of = "" if self._total is None else f" of {self._total}"
        line = f"{self._done}{of} {self._units} in {span(now - self._start)}, {rate:.3g} a second"
        if self._total is not None and rate:
            line += f", about {span(max(0, self._total - self._done) / rate)} left"
        print(f"{self._label}: {line}", file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """Return a time in the largest unit of which there are two or more."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
