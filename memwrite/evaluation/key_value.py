"""Score what a memory recalls of key-value pairs: exact match, its parts, and controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memwrite.backbones.tokenizers import ALPHABET
from memwrite.config import to_dict
from memwrite.evaluation.controls import (
    TITLES,
    context_visible,
    evaluation_mode,
    parts,
    readings,
    table,
)
from memwrite.evaluation.cost import Cost, Meter
from memwrite.evaluation.scores import Scores, bits_recalled, score
from memwrite.state import MemoryState, Tokens
from memwrite.tasks.base import IGNORED, Batch, EvaluatedMemory, Examples, collate
from memwrite.tasks.synthetic import CLOSING
from memwrite.utils.progress import track

_QUERIES_PER_BATCH = 1024


@dataclass(frozen=True)
class KeyValueEvaluation(Cost):
    """The recall of a memory, beside the same reader under controls.

    Attributes:
        contexts: number of contexts evaluated.
        pairs: keys per context, each queried.
        value_length: characters per value.
        surprise: bits that the memory's reader needs for one value, its characters' negative log-likelihoods
            together, each given the right ones before it; the mean over all.
        memory: read from the states written.
        unwritten: from a memory that has read nothing.
        zero_state: from zeros in their place.
        shuffled_state: from the state of another context.
        full_context: from the context itself before the query, by the same backbone without a memory; None
            where both are longer than its positions.
    """

    contexts: int
    pairs: int
    value_length: int
    surprise: float
    memory: Scores
    unwritten: Scores
    zero_state: Scores
    shuffled_state: Scores
    full_context: Scores | None

    @property
    def bits(self) -> float:
        """Bits recalled per context, see `bits_recalled`."""
        return self.pairs * bits_recalled(self.memory.exact_match, self.value_length)

    @property
    def bits_gained(self) -> float:
        """Bits per context by which the memory's `surprise` is below that of knowing no more of the values than
        that all are equally likely: a lower bound of the information in the state, at least 0.
        """
        return max(self.pairs * (self._value_bits - self.surprise), 0.0)

    @property
    def _value_bits(self) -> float:
        return self.value_length * math.log2(len(ALPHABET))

    @property
    def bits_per_float(self) -> float | None:
        """Bits recalled per number of the state; None for a state without numbers."""
        return self.bits / self.state_floats if self.state_floats else None

    @property
    def bits_gained_per_float(self) -> float | None:
        """Bits gained per number of the state; None for a state without numbers."""
        return self.bits_gained / self.state_floats if self.state_floats else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            **to_dict(self),
            "bits": self.bits,
            "bits_gained": self.bits_gained,
            "bits_per_float": self.bits_per_float,
        }

    def lines(self) -> list[str]:
        """Return a table of the memory and its controls, and the figures as sentences."""
        columns = ("exact match", "95% interval", "characters", "set recall", "binding")
        most = self.pairs * self._value_bits
        per_float = self.bits_per_float
        rate = "" if per_float is None else f", {per_float:.3f} per number of the state"
        return [
            f"{self.contexts} contexts of {self.pairs} pairs, each queried; {self.size}",
            self.time,
            *table(columns, {title: _cells(getattr(self, name)) for name, title in TITLES.items()}),
            f"bits recalled: {self.bits:.1f} of {most:.1f} per context{rate}",
            f"bits gained: {self.bits_gained:.1f} of {most:.1f} per context (likelihood of the values)",
            f"set recall: the answer is some value of the context; binding: and that of its key (by chance "
            f"{1 / self.pairs:.1%})",
        ]


def _cells(scores: Scores | None) -> list[str]:
    if scores is None:
        return ["too long"]
    low, high = scores.interval
    return [
        f"{scores.exact_match:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{scores.token_accuracy:.1%}",
        f"{scores.set_recall:.1%}",
        "-" if scores.binding is None else f"{scores.binding:.1%}",
    ]


def evaluate(memory: EvaluatedMemory, examples: Examples) -> KeyValueEvaluation:
    """Write every context once and query all of its pairs, in evaluation mode.

    Args:
        memory: the memory to score; its mode is restored.
        examples: at least 2 of a `KeyValueTask`, all at one number of pairs.

    Raises:
        ValueError: there are fewer than 2 examples, so that no state is another's.
    """
    if len(examples) < 2:
        raise ValueError(f"at least 2 examples are needed, got {len(examples)}")
    first = examples[0]
    ranges = parts(len(examples), _QUERIES_PER_BATCH // len(first.queries))
    answers: dict[str, list[_Answers]] = {}
    meter = Meter(memory.backbone.info.device)
    with evaluation_mode(memory):
        visible = context_visible(memory, len(first.context) + len(first.queries[0]))
        for indices in track([*ranges], "evaluate", "batch"):
            batch = collate([examples[index] for index in indices])["batch"]
            state = meter.timed("write", memory.write, batch.context).state
            meter.written(state, len(indices))
            # Each context with the state of the one before it, the first with that of the last.
            others = [row - 1 for row in range(len(indices))]
            for name, reader, given in readings(memory, state, visible, batch.context, others):
                if name == "full_context":
                    meter.cached(given, len(indices))
                found = meter.timed(name, _answers, reader, given, batch)
                answers.setdefault(name, []).append(found)
    scores = {name: _scored(batches) for name, batches in answers.items()}
    _, pairs, length = answers["memory"][-1].targets.shape
    return KeyValueEvaluation(
        contexts=len(examples),
        pairs=pairs,
        value_length=length,
        **meter.cost(),
        surprise=float(torch.cat([batch.surprise for batch in answers["memory"]]).mean()),
        memory=scores["memory"],
        unwritten=scores["unwritten"],
        zero_state=scores["zero_state"],
        shuffled_state=scores["shuffled_state"],
        full_context=scores.get("full_context"),
    )


@dataclass(frozen=True)
class _Answers:
    """The answers of one batch, see `score`; `surprise` (contexts, pairs) is in bits per value."""

    forced: Tensor
    decoded: Tensor
    targets: Tensor
    surprise: Tensor


def _answers(memory: EvaluatedMemory, state: MemoryState, batch: Batch) -> _Answers:
    logits, targets = _values(memory.read(state, batch.queries).logits, batch.labels)
    forced = logits.argmax(-1)
    likelihood = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    start = int((batch.labels[0, 0] != IGNORED).nonzero()[0])
    decoded, question = forced[..., :1], batch.queries.columns(0, start)
    for _ in range(1, targets.shape[-1]):
        ids = torch.cat([question.ids, decoded], -1)
        query = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
        following = memory.read(state, query).logits[..., -1:, :].argmax(-1)
        decoded = torch.cat([decoded, following.cpu()], -1)
    return _Answers(forced, decoded, targets, -likelihood.sum(-1).double() / math.log(2))


def _values(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (B, Q, L, V) of the values' characters, each given the right ones before it, and the characters."""
    labels = labels.cpu()
    columns = (labels[0, 0] != IGNORED).nonzero().flatten()[: -len(CLOSING)]
    return logits[..., columns.to(logits.device) - 1, :].cpu(), labels[..., columns]


def _scored(answers: Sequence[_Answers]) -> Scores:
    return score(
        torch.cat([batch.forced for batch in answers]),
        torch.cat([batch.decoded for batch in answers]),
        torch.cat([batch.targets for batch in answers]),
    )
