"""The contract of a task, and how its examples become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from memwrite.loss import Batch
from memwrite.state import Tokens

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One context with its queries.

    Attributes:
        context: token ids to be written; may be empty.
        queries: token ids to be read, each with its answer behind it.
        labels: like `queries`: the id to be predicted at each place, -100 where nothing is asked.
    """

    context: list[int]
    queries: list[list[int]]
    labels: list[list[int]]


class Examples(Protocol):
    """A sequence of examples, each of them a function of its index alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class Task(Protocol):
    """Where examples come from."""

    def training(self, count: int, seed: int) -> Examples:
        """`count` examples that depend on the seed alone."""
        ...

    def evaluation(self) -> Examples:
        """Held-out examples, always the same."""
        ...


@runtime_checkable
class Curriculum(Task, Protocol):
    """A task that is learnt in stages.

    An example's stage follows from its index alone, so that a resumed training sees what an uninterrupted one
    would have seen.
    """

    #: Exact match from which on a stage is left.
    advance: float

    #: What tells one stage from the next, to be shown to people; the last one is the goal.
    stages: list[int]

    #: For each stage that training has reached, the index of its first example.
    starts: list[int]


def collate(examples: Sequence[Example]) -> dict[str, Batch]:
    """B examples with the same number Q of queries each, as one right-padded batch."""
    count = len(examples[0].queries)
    queries = Tokens.from_rows([query for example in examples for query in example.queries])
    labels = torch.full_like(queries.ids, IGNORED)
    for row, wanted in enumerate(label for example in examples for label in example.labels):
        labels[row, : len(wanted)] = torch.tensor(wanted)
    shape = (len(examples), count, queries.ids.shape[1])
    return {
        "batch": Batch(
            context=Tokens.from_rows([example.context for example in examples]),
            queries=queries.map(lambda tensor: tensor.reshape(shape)),
            labels=labels.reshape(shape),
        )
    }
