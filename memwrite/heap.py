"""How this process holds on to freed memory while it trains or writes in bulk."""

from __future__ import annotations

import ctypes

# Of glibc's mallopt(3), with its largest values but for the last.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_WANTED = {_MMAP_THRESHOLD: 1 << 25, _TRIM_THRESHOLD: (1 << 31) - 1, _TOP_PAD: 1 << 26}


def keep_freed_memory() -> None:
    """Ask the C library to use freed blocks again instead of giving them back to the system.

    Every step on CPU frees what the next one asks for; to fault it in page by page anew takes a tenth of a step of
    training and a fifth of a batch that is written. Other libraries than glibc are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _WANTED.items():
            mallopt(option, value)
