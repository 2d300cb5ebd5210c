"""The contract of a task, and how its examples become a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from memwrite.backbones.tokenizers import Tokenizer
from memwrite.config import Config
from memwrite.protocols import IGNORED as IGNORED
from memwrite.protocols import Backbone, Predictions, ReadOutput, WriteOutput
from memwrite.state import MemoryState, Tokens


@dataclass(frozen=True)
class Example:
    """One context with its queries.

    Attributes:
        context: token ids to be written; may be empty.
        queries: token ids to be read, each with its answer behind it.
        labels: like `queries`: the id to be predicted at each place, -100 where nothing is to be predicted.
        segments: the segment of each token of the context, as in `Tokens.segments`; None where it has none.

    Raises:
        ValueError: there are not as many segments as tokens.
    """

    context: list[int]
    queries: list[list[int]]
    labels: list[list[int]]
    segments: list[int] | None = None

    def __post_init__(self) -> None:
        if self.segments is not None and len(self.segments) != len(self.context):
            raise ValueError(
                f"{len(self.segments)} segments of {len(self.context)} tokens: give one for each"
            )


class Examples(Protocol):
    """A sequence of examples, each of them a function of its index alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def spread(examples: Examples, count: int | None) -> Examples:
    """Return `count` of the examples, taken at even distances; all of them where there are no more, or for None."""
    if count is None or count >= len(examples):
        return examples
    return [examples[i * len(examples) // count] for i in range(count)]


class Task(Protocol):
    """Where examples come from."""

    def training(self, count: int, seed: int) -> Examples:
        """Return `count` examples that depend on the seed alone."""
        ...

    def evaluation(self) -> Examples:
        """Return the held-out examples, always the same."""
        ...

    def fresh(self, count: int, seed: int) -> Examples:
        """Return `count` other held-out examples, each a function of seed and index."""
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


@runtime_checkable
class Texts(Protocol):
    """A task's parameters where it is read from texts, which a tokenizer can learn from."""

    def texts(self) -> Iterable[str]:
        """Return all training texts, and nothing of what is held out."""
        ...


class EvaluatedBackbone(Backbone, Protocol):
    """A language model with its tokenizer."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        ...


class EvaluatedMemory(Protocol):
    """What the evaluation of a task may use of a `Memory`; see there."""

    training: bool

    def eval(self) -> object:
        """Go to evaluation mode."""
        ...

    def train(self, mode: bool = True) -> object:
        """Go to training mode, or back to evaluation mode."""
        ...

    @property
    def config(self) -> Config:
        """The configuration that the memory was built from."""
        ...

    @property
    def backbone(self) -> EvaluatedBackbone:
        """The language model with its tokenizer."""
        ...

    @classmethod
    def from_config(cls, source: Config, *, backbone: Any) -> Self:
        """Build another memory around the same backbone, for a control."""
        ...

    def encode(self, texts: str | Sequence[str]) -> Tokens:
        """Tokenize texts to be written."""
        ...

    def opens(self, state: MemoryState | None) -> list[bool]:
        """Say for each row whether what is put behind it is the start of a text; [] where all rows open one."""
        ...

    def write(self, context: Tokens) -> WriteOutput:
        """Write contexts into states, one per row."""
        ...

    def read(self, state: MemoryState, query: Tokens) -> ReadOutput:
        """Return the logits of queries behind their states."""
        ...

    def predict(self, state: MemoryState, query: Tokens, labels: Tensor) -> Predictions:
        """Return the logits of queries behind their states where a token is labelled."""
        ...

    def generate(
        self, state: MemoryState, query: Tokens | None = None, **options: Any
    ) -> torch.Tensor:
        """Continue queries behind their states."""
        ...


class Evaluation(Protocol):
    """What an evaluation measured."""

    def as_dict(self) -> Mapping[str, Any]:
        """Return everything as plain data, fit for JSON."""
        ...

    def lines(self) -> Sequence[str]:
        """Return the lines of text that people read."""
        ...


@dataclass(frozen=True)
class Batch:
    """What training feeds.

    Attributes:
        context: (B, T), written once per row.
        queries: (B, T) or (B, Q, T): the rows' queries with their answers behind them.
        labels: like queries.ids: the token id to be predicted AT that place from all before it; -100 where
            nothing is to be predicted.
    """

    context: Tokens
    queries: Tokens
    labels: Tensor


def collate(examples: Sequence[Example]) -> dict[str, Batch]:
    """Collate B examples into one right-padded batch of Q queries each, the most that one has.

    An example with fewer queries is filled up with empty ones, whose labels are all ignored.
    """
    count = max(len(example.queries) for example in examples)
    queries = Tokens.from_rows([query for e in examples for query in _filled(e.queries, count)])
    labels = torch.full_like(queries.ids, IGNORED)
    for row, ids in enumerate(label for e in examples for label in _filled(e.labels, count)):
        labels[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    shape = (len(examples), count, queries.ids.shape[1])
    return {
        "batch": Batch(
            context=_context(examples),
            queries=queries.map(lambda tensor: tensor.reshape(shape)),
            labels=labels.reshape(shape),
        )
    }


def _filled(rows: list[list[int]], count: int) -> list[list[int]]:
    return [*rows, *[[]] * (count - len(rows))]


def _context(examples: Sequence[Example]) -> Tokens:
    tokens = Tokens.from_rows([example.context for example in examples])
    if all(example.segments is None for example in examples):
        return tokens
    numbers = Tokens.from_rows(
        [example.segments or [-1] * len(example.context) for example in examples]
    )
    return Tokens(tokens.ids, tokens.mask, numbers.ids.masked_fill(~tokens.mask, -1))
