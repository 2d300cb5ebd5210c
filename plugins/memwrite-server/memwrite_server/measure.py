"""What a memory is worth to the model: value kept of a text's last sentences, and the size of the cache in its place."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch

from memwrite.config import PartConfig
from memwrite.demo.article import split
from memwrite.errors import InputError
from memwrite.evaluation.value_kept import predict, value_kept
from memwrite.memory import Memory
from memwrite_server.batcher import Job


@dataclass(frozen=True)
class Worth:
    """What a memory is worth.

    Attributes:
        value: of the last sentences behind a memory of the others; None where they cannot be told apart, or the text
            is worth nothing to them.
        cache_bytes: of the whole text's keys and values.
        tokens: of the text.
    """

    value: float | None
    cache_bytes: int
    tokens: int


class Measure(Job):
    """Measure on one text, which is written thrice for it."""

    counts = "written"

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    @property
    def group(self) -> Hashable:
        """Every text is measured by itself."""
        return id(self)

    @classmethod
    @torch.no_grad()
    def run(cls, memory: Memory, jobs: Sequence[Measure]) -> list[Worth]:
        """Measure on each text."""
        return [_worth(memory, job.text) for job in jobs]


def _worth(memory: Memory, text: str) -> Worth:
    nothing = _beside(memory, "no-memory", "no-memory")
    visible = _beside(memory, "full-context", "key-value")
    tokens = visible.encode(text, raw=True)
    cache = visible.write(tokens).state.nbytes
    value = None
    try:
        written, following = split(text)
        ids = memory.backbone.tokenizer.encode(following)
        if len(ids) > 1:
            bits = [
                sum(predict(each, each.write(each.encode(written, raw=True)).state, [ids])[0].bits)
                for each in (nothing, memory, visible)
            ]
            kept = value_kept(*([each] for each in bits))
            value = None if kept is None else kept.mean
    except InputError:  # one sentence, or more than the model has positions for
        pass
    return Worth(value, cache, int(tokens.lengths))


def _beside(memory: Memory, writer: str, reader: str) -> Memory:
    config = replace(memory.config, writer=PartConfig(writer), reader=PartConfig(reader), task=None)
    return Memory.from_config(config, backbone=memory.backbone)
