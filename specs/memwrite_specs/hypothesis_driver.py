"""The search for a failure: how cases are drawn, and how long a smaller one is looked for."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.configuration import set_hypothesis_home_dir

#: Seconds spent on a smaller example after the first failure was found.
SHRINK_SECONDS = 15.0
#: Seconds that one case may take.
CASE_SECONDS = 40.0


class StopShrinking(BaseException):
    """Ends a search; it passes through hypothesis, whose own limit is minutes."""


class CaseTimeout(BaseException):
    """A case takes too long; it passes through everything that catches exceptions."""


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise CaseTimeout when what is within takes longer than CASE_SECONDS.

    In the main thread of systems with signals; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise CaseTimeout

    begun = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's
            signal.setitimer(
                signal.ITIMER_REAL, max(left - time.monotonic() + begun, 0.01), interval
            )


@dataclass
class FailureSearch:
    """Keeps the smallest failure so far.

    Attributes:
        error: None while there is none.
        drawn: the values it was found with, by name.
    """

    error: Exception | None = None
    drawn: dict[str, str] = field(default_factory=dict)
    _begun: float = 0.0

    def record(self, error: Exception, drawn: Mapping[str, object]) -> None:
        """Take note of a failure, and raise StopShrinking when it is time to stop."""
        words = {name: repr(value) for name, value in drawn.items()}
        if self.error is None:
            self._begun = time.monotonic()
        if self.error is None or _size(words) <= _size(self.drawn):
            self.error, self.drawn = error, words
        self.check_time()

    def check_time(self) -> None:
        """Raise StopShrinking when it is time to stop."""
        if self.error is not None and time.monotonic() - self._begun > SHRINK_SECONDS:
            raise StopShrinking


def _size(words: Mapping[str, str]) -> int:
    return sum(map(len, words.values()))


def keep_notes_elsewhere() -> None:
    """Let hypothesis keep its notes among temporary files, not in the working directory, for this process."""
    set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "memwrite-specs")


def quiet(examples: int, steps: int = 1) -> settings:
    """Return settings that print nothing and keep nothing; the seed alone decides what is drawn."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        print_blob=False,
    )
