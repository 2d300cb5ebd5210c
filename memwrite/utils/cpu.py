"""How long work is done on CPU: training, evaluation, writing in bulk."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of glibc's mallopt(3): no block has a mapping of its own, and the heap does not shrink.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_WANTED = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 1 << 26}


@contextmanager
def tuned_cpu() -> Iterator[None]:
    """While it lasts numbers below the normal ones are zero; freed memory is kept, also afterwards.

    Gradients through attention that looks away from most places are full of such numbers (in float32, of a size under
    1.2e-38), with which processors reckon many times slower: a third of a step with 32 pairs of a trained writer. It
    holds for the calling thread, and those that are started meanwhile.

    Every step frees what the next one asks for: to fault it in anew page by page takes a tenth of a step of training, and
    more of large ones. Other libraries than glibc, and processors that cannot, are left as they are.
    """
    was = not (torch.tensor(torch.finfo(torch.float32).tiny) / 2).item()
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _WANTED.items():
            mallopt(option, value)
    try:
        yield
    finally:
        torch.set_flush_denormal(was)
