"""torch's random number generator, which one thread at a time uses to draw and load weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

_turn = RLock()


@contextmanager
def seeded(seed: int | None = None) -> Iterator[None]:
    """Seed torch's generator within this block, where `seed` is not None, and restore its state afterwards.

    Threads take turns, because the generator, and what transformers sets while it makes a model, belong to the whole
    process. A thread that samples an answer meanwhile does not take a turn, and draws from the same generator.
    """
    with _turn, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
