"""Time that other work on the machine disturbs less."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def median(action: Callable[[], object], repeats: int) -> float:
    """CPU seconds of `action` in this process, the median of so many calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return statistics.median(times)
