"""What takes a while says so on standard error: always within `show_progress`, and else only where somebody is watching."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

#: Seconds between the lines that a log gets, and before the first one.
EVERY = 10.0
PATIENCE = 3.0

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
    """Yield the same items, and show how many are done: a bar on a terminal, else a line every ten seconds."""
    if _shown.get() and not sys.stderr.isatty():
        yield from _logged(steps, label, unit)
    else:
        yield from tqdm(steps, desc=label, unit=unit, leave=False, disable=not _shown.get())


def _logged(steps: Iterable[T], label: str, unit: str) -> Iterator[T]:
    total = len(steps) if isinstance(steps, Sized) else None
    start = last = time.monotonic()
    units = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
    for done, item in enumerate(steps, 1):
        yield item
        now = time.monotonic()
        if now - last < EVERY:
            continue
        last = now
        line = f"{label}: {done} {units} in {now - start:.0f} s"
        if total is not None:
            left = (now - start) / done * (total - done)
            line = f"{label}: {done} of {total} {units} in {now - start:.0f} s, about {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)
