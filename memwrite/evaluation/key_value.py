"""What a memory recalls of key-value pairs: exact match, what it is made of, and controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from memwrite.backbones.tokenizers import ALPHABET
from memwrite.config import PartConfig, to_dict
from memwrite.evaluation.scores import Scores, bits_recalled, score
from memwrite.state import MemoryState, Tokens
from memwrite.tasks.base import IGNORED, Batch, EvaluatedMemory, Example, Examples, collate
from memwrite.tasks.synthetic import CLOSING
from memwrite.utils.progress import track

_QUERIES_PER_BATCH = 1024

M = TypeVar("M", bound=EvaluatedMemory)


@dataclass(frozen=True)
class KeyValueEvaluation:
    """What a memory recalled, beside the same reader under controls.

    Attributes:
        contexts: evaluated, each of them with
        pairs: so many keys, all asked for.
        value_length: characters per value.
        state_floats: numbers per state, measured from its tensors.
        state_bytes: likewise.
        surprise: bits that the memory's reader needs for one value, its characters' negative log-likelihoods
            together, each given the right ones before it; the mean over all.
        memory: read from the states written.
        zero_state: from zeros in their place.
        shuffled_state: from the state of another context.
        full_context: from the context itself before the query, by the same backbone without a memory; None
            where both are longer than its positions.
    """

    contexts: int
    pairs: int
    value_length: int
    state_floats: int
    state_bytes: int
    surprise: float
    memory: Scores
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

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            **to_dict(self),
            "bits": self.bits,
            "bits_gained": self.bits_gained,
            "bits_per_float": self.bits_per_float,
        }

    def lines(self) -> list[str]:
        """A table of the memory and its controls, and the figures as sentences."""
        rows = {
            "memory": self.memory,
            "zero state": self.zero_state,
            "another's state": self.shuffled_state,
            "context visible": self.full_context,
        }
        columns = ("exact match", "95% interval", "characters", "set recall", "binding")
        most = self.pairs * self._value_bits
        per_float = self.bits_per_float
        rate = "" if per_float is None else f", {per_float:.3f} per number of the state"
        return [
            f"{self.contexts} contexts of {self.pairs} pairs, all asked for; state of "
            f"{self.state_floats:,} numbers, {self.state_bytes:,} bytes",
            _row("", *columns),
            *(_row(name, *_cells(scores)) for name, scores in rows.items()),
            f"bits recalled: {self.bits:.1f} of {most:.1f} per context{rate}",
            f"bits gained: {self.bits_gained:.1f} of {most:.1f} per context (likelihood of the values)",
            f"set recall: the answer is some value of the context; binding: and that of its key (by chance "
            f"{1 / self.pairs:.1%})",
        ]


def _cells(scores: Scores | None) -> list[str]:
    if scores is None:
        return ["too long", *[""] * 4]
    low, high = scores.interval
    return [
        f"{scores.exact_match:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{scores.token_accuracy:.1%}",
        f"{scores.set_recall:.1%}",
        "-" if scores.binding is None else f"{scores.binding:.1%}",
    ]


def _row(name: str, *cells: str) -> str:
    return (name.ljust(16) + "".join(cell.rjust(17) for cell in cells)).rstrip()


@torch.no_grad()
def evaluate(memory: EvaluatedMemory, examples: Examples) -> KeyValueEvaluation:
    """Write every context once and ask for all of its pairs, in evaluation mode.

    Args:
        memory: whose mode is as before afterwards.
        examples: at least 2 of a `KvTask`, all at one number of pairs.

    Raises:
        ValueError: there are fewer than 2 examples, so that no state is another's.
    """
    if len(examples) < 2:
        raise ValueError(f"at least 2 examples are needed, got {len(examples)}")
    training = memory.training
    memory.eval()
    try:
        return _evaluate(memory, examples)
    finally:
        memory.train(training)


def _evaluate(memory: EvaluatedMemory, examples: Examples) -> KeyValueEvaluation:
    full = context_visible(memory, examples[0])
    found: dict[str, list[_Answers]] = {}
    for batch in track([*batches(examples)], "evaluate", "batch"):
        state = memory.write(batch.context).state
        readings = {
            "memory": (memory, state),
            "zero_state": (memory, state.map(torch.zeros_like)),
            "shuffled_state": (memory, state.map(lambda tensor: tensor.roll(1, 0))),
        }
        if full is not None:
            readings["full_context"] = (full, full.write(batch.context).state)
        for name, (reading, given) in readings.items():
            found.setdefault(name, []).append(_answers(reading, given, batch))
    scores = {name: _scored(answers) for name, answers in found.items()}
    rows, pairs, length = found["memory"][-1].targets.shape
    return KeyValueEvaluation(
        contexts=len(examples),
        pairs=pairs,
        value_length=length,
        state_floats=state.floats // rows,
        state_bytes=state.nbytes // rows,
        surprise=float(torch.cat([part.surprise for part in found["memory"]]).mean()),
        memory=scores["memory"],
        zero_state=scores["zero_state"],
        shuffled_state=scores["shuffled_state"],
        full_context=scores.get("full_context"),
    )


def batches(examples: Examples) -> Iterator[Batch]:
    """Batches of at least 2 contexts, so that each has another one's state to be given."""
    total, pairs = len(examples), len(examples[0].queries)
    count = max(1, total // max(2, _QUERIES_PER_BATCH // pairs))
    for part in range(count):
        indices = range(part * total // count, (part + 1) * total // count)
        yield collate([examples[index] for index in indices])["batch"]


def context_visible(memory: M, example: Example) -> M | None:
    """The backbone with the context kept as it is, if that and a query fit its positions."""
    backbone = memory.backbone
    if len(example.context) + len(example.queries[0]) > backbone.info.positions:
        return None
    writer, reader = PartConfig("full-context"), PartConfig("key-value")
    config = replace(memory.config, writer=writer, reader=reader)
    return type(memory).from_config(config, backbone=backbone)


@dataclass(frozen=True)
class _Answers:
    """See `score`; `surprise` (contexts, pairs) is in bits per value."""

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
        asked = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
        following = memory.read(state, asked).logits[..., -1:, :].argmax(-1)
        decoded = torch.cat([decoded, following.cpu()], -1)
    return _Answers(forced, decoded, targets, -likelihood.sum(-1).double() / math.log(2))


def _values(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, Q, L, V) of the values' characters, each given the right ones before it, and the characters."""
    labels = labels.cpu()
    columns = (labels[0, 0] != IGNORED).nonzero().flatten()[: -len(CLOSING)]
    return logits[..., columns.to(logits.device) - 1, :].cpu(), labels[..., columns]


def _scored(answers: Sequence[_Answers]) -> Scores:
    return score(
        torch.cat([part.forced for part in answers]),
        torch.cat([part.decoded for part in answers]),
        torch.cat([part.targets for part in answers]),
    )
