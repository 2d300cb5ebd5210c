"""Weights are drawn and loaded by one thread at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

_turn = RLock()


@contextmanager
def seeded(seed: int | None = None) -> Iterator[None]:
    """Draw from torch's generator as it is after `seed`, by default as it is, and leave it as it was.

    Threads take turns: that generator, and what transformers sets while it makes a model, are the whole process's. A
    thread that samples an answer meanwhile takes no turn, and draws from it too.
    """
    with _turn, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
