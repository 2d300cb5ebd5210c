"""What a memory costs beside keeping the context: seconds to write and read, and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from memwrite.evaluation.controls import context_visible
from memwrite.memory import Memory
from memwrite.tasks.base import Batch, Example, collate
from memwrite.utils.timing import timed

REPEATS, BATCH = 5, 32


@dataclass(frozen=True)
class Seconds:
    """Medians of `REPEATS` calls after one to warm up, all four taken in turn, so that a busy moment of the machine
    meets them alike.

    Attributes:
        batch: contexts at once.
        write: all of them into states.
        read: one query with its answer from each state, in one pass.
        prefill: of the same contexts by the same model, whose KV caches are kept; None if they are too long.
        visible_read: the same query behind that cache.
    """

    batch: int
    write: float
    read: float
    prefill: float | None
    visible_read: float | None

    @property
    def write_ratio(self) -> float | None:
        """The time of a write as a multiple of `prefill`."""
        return self.write / self.prefill if self.prefill else None

    @property
    def read_ratio(self) -> float | None:
        """The time of a read as a multiple of `visible_read`."""
        return self.read / self.visible_read if self.visible_read else None


@dataclass(frozen=True)
class Cost:
    """Of one memory at one length of context.

    Attributes:
        single: for one context.
        batched: for `BATCH`, or as many as there are.
        kv_bytes: of one context's KV cache in the same model, measured from its tensors; None if it is too long.
    """

    single: Seconds
    batched: Seconds
    kv_bytes: int | None


@torch.no_grad()
def cost(memory: Memory, examples: list[Example]) -> Cost:
    """Time writes and reads of the first example, and of the first `BATCH` of them at once.

    Args:
        memory: in evaluation mode.
        examples: of one length.
    """
    first = examples[0]
    full = context_visible(memory, len(first.context) + len(first.queries[0]))
    batches = [collate(part)["batch"] for part in (examples[:1], examples[:BATCH])]
    single, batched = (_seconds(memory, full, batch) for batch in batches)
    kept = full.write(batches[0].context).state.nbytes if full is not None else None
    return Cost(single, batched, kept)


def _seconds(memory: Memory, full: Memory | None, batch: Batch) -> Seconds:
    query = batch.queries.map(lambda tensor: tensor[:, :1])
    state = memory.write(batch.context).state
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: memory.write(batch.context),
        "read": lambda: memory.read(state, query),
    }
    if full is not None:
        visible, cache = full, full.write(batch.context).state
        calls["prefill"] = lambda: visible.write(batch.context)
        calls["visible_read"] = lambda: visible.read(cache, query)
    taken = _medians(calls, memory.backbone.info.device)
    return Seconds(
        batch=len(batch.labels),
        write=taken["write"],
        read=taken["read"],
        prefill=taken.get("prefill"),
        visible_read=taken.get("visible_read"),
    )


def _medians(calls: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + REPEATS):
        for name, call in calls.items():
            taken[name].append(timed(device, call)[1])
    return {name: median(seconds[1:]) for name, seconds in taken.items()}
