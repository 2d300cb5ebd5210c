"""What `evaluate` of any task finds: scores of answers, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memwrite.config import to_dict
from memwrite.evaluation.controls import TITLES, table
from memwrite.evaluation.cost import Cost


@dataclass(frozen=True)
class AnswerScores:
    """How answers compare with what is right; shares from 0 to 1.

    Attributes:
        questions: how many.
        tokens: labelled tokens of all of them.
        exact_match: questions with every labelled token the model's first choice, which is greedy decoding.
        interval: 95% confidence interval of exact_match.
        token_accuracy: labelled tokens predicted right, each given the right ones before it.
        bits: mean negative log2-likelihood of a labelled token, given the right ones before it.
        word_match: decoded answers that are, normalised, one of the right ones; None where answers are no phrases.
        word_contained: decoded answers that hold a right one, both normalised; None likewise.
        word_f1: words that decoded answers share with right ones, see `word_f1`; None likewise.
    """

    questions: int
    tokens: int
    exact_match: float
    interval: tuple[float, float]
    token_accuracy: float
    bits: float
    word_match: float | None
    word_contained: float | None
    word_f1: float | None


@dataclass(frozen=True)
class AnswerEvaluation(Cost):
    """What a memory answered, beside the same reader under controls.

    Attributes:
        contexts: examples evaluated.
        memory: read from the states written.
        unwritten: from a memory that has read nothing.
        zero_state: from zeros in their place.
        shuffled_state: from the state of another context; None where there is no other.
        full_context: from the context itself before the query, by the same backbone without a memory; None
            where a context and its query are longer than its positions, or there is no context.
        groups: the memory's answers by file or category, where the task has such.
    """

    contexts: int
    memory: AnswerScores
    unwritten: AnswerScores
    zero_state: AnswerScores
    shuffled_state: AnswerScores | None
    full_context: AnswerScores | None
    groups: dict[str, AnswerScores]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return to_dict(self)

    def lines(self) -> list[str]:
        """Return a table of the memory and its controls, and one of its groups."""
        lines = [
            f"{self.contexts} contexts with {self.memory.questions} questions, {self.memory.tokens} tokens of "
            f"answer; {self.size}",
            self.time,
            *_table({title: getattr(self, name) for name, title in TITLES.items()}),
        ]
        if len(self.groups) > 1:
            named = {f"{name} ({s.questions})": s for name, s in sorted(self.groups.items())}
            lines += ["the memory's answers by group (questions):", *_table(named)]
        return lines


def _table(rows: Mapping[str, AnswerScores | None]) -> list[str]:
    phrases = any(scores and scores.word_f1 is not None for scores in rows.values())
    columns = ["exact match", "95% interval", "tokens right", "bits per token"]
    columns += ["EM in words", "contained", "F1"] if phrases else []
    return table(columns, {name: _cells(scores) for name, scores in rows.items()})


def _cells(scores: AnswerScores | None) -> list[str]:
    if scores is None:
        return ["-"]
    low, high = scores.interval
    shares = [scores.word_match, scores.word_contained, scores.word_f1]
    return [
        f"{scores.exact_match:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{scores.token_accuracy:.1%}",
        f"{scores.bits:.3f}",
        *(f"{share:.1%}" for share in shares if share is not None),
    ]
