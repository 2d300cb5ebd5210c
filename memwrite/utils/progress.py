"""Progress bars that a writer may always report to and that only show where somebody is watching."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_shown: ContextVar[bool] = ContextVar("memwrite_progress", default=False)


@contextmanager
def show_progress() -> Iterator[None]:
    """Within this, `track` draws a bar on standard error if that is a terminal."""
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


def announce(sentence: str) -> None:
    """Say on standard error what takes a while, where somebody is watching or wants to know."""
    if _shown.get() or sys.stderr.isatty():
        print(sentence, file=sys.stderr, flush=True)


def track(steps: Iterable[T], label: str, unit: str = "step") -> Iterator[T]:
    """The same items, counted on a progress bar when one is wanted."""
    yield from tqdm(
        steps, desc=label, unit=unit, leave=False, disable=None if _shown.get() else True
    )
