"""What a memory costs: bytes and seconds, beside the key-value cache of what it read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import torch

from memwrite.state import MemoryState
from memwrite.utils.timing import timed

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What every evaluation says of the cost.

    Attributes:
        state_floats: numbers per state, measured from its tensors; the largest where it grows with the context.
        state_bytes: likewise.
        cache_bytes: likewise, of the model's whole key-value cache; None where the context is too long for it, or none.
        write_seconds: per context.
        read_seconds: per context, for all of its queries.
    """

    state_floats: int
    state_bytes: int
    cache_bytes: int | None
    write_seconds: float = field(compare=False)
    read_seconds: float = field(compare=False)

    @property
    def size(self) -> str:
        """Say how large the state is."""
        text = f"state of {self.state_floats:,} numbers, {self.state_bytes:,} bytes"
        if not self.cache_bytes:
            return text
        return f"{text}, {self.state_bytes / self.cache_bytes:.1%} of the key-value cache"

    @property
    def time(self) -> str:
        """Say how long a context took."""
        write, read = (1000 * seconds for seconds in (self.write_seconds, self.read_seconds))
        return f"written in {write:,.1f} ms a context, all of its queries read in {read:,.1f} ms"


class Meter:
    """Measures a memory while it is evaluated.

    Args:
        device: does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._floats = self._bytes = self._cache = self._contexts = 0

    def timed(self, name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work whose seconds count under a name; those of "write" and "memory" become a `Cost`."""
        result, seconds = timed(self._device, work, *args, **kwargs)
        self._seconds[name] += seconds
        return result

    def written(self, state: MemoryState, contexts: int) -> None:
        """Count the states of so many more contexts."""
        self._contexts += contexts
        self._floats = max(self._floats, state.floats // contexts)
        self._bytes = max(self._bytes, state.nbytes // contexts)

    def cached(self, state: MemoryState, contexts: int) -> None:
        """Count the key-value caches of contexts."""
        self._cache = max(self._cache, state.nbytes // contexts)

    def cost(self) -> dict[str, Any]:
        """Return the fields of a `Cost`."""
        return {
            "state_floats": self._floats,
            "state_bytes": self._bytes,
            "cache_bytes": self._cache or None,
            "write_seconds": self._seconds["write"] / self._contexts,
            "read_seconds": self._seconds["memory"] / self._contexts,
        }
