"""Score what a memory answers on any task: exact match, token accuracy, bits and shared words, beside controls."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional

from memwrite.backbones.generation import text_of
from memwrite.errors import InputError
from memwrite.evaluation.answer_table import AnswerEvaluation, AnswerScores
from memwrite.evaluation.controls import context_visible, evaluation_mode, parts, readings
from memwrite.evaluation.cost import Meter
from memwrite.evaluation.scores import effective_count, wilson
from memwrite.evaluation.words import word_contained, word_f1, word_match
from memwrite.protocols import Predictions
from memwrite.state import MemoryState, Tokens
from memwrite.tasks.base import IGNORED, EvaluatedMemory, Example, Examples, collate
from memwrite.tasks.questions import Question, QuestionsExample
from memwrite.utils.progress import track

# Limits of one batch: numbers in its logits, and tokens.
_MAX_LOGITS, _MAX_TOKENS = 1 << 27, 1 << 14


def evaluate(memory: EvaluatedMemory, examples: Examples) -> AnswerEvaluation:
    """Write every context once and read all of its queries, in evaluation mode.

    A query's first token counts only where every column can predict it, so not beside the full context, which has
    no token for it.

    Args:
        memory: the memory to score; its mode is restored.
        examples: of any task.

    Raises:
        InputError: the examples have no labelled token.
    """
    with evaluation_mode(memory):
        return _Evaluator(memory, examples).run()


@dataclass(frozen=True)
class _Answer:
    """The answer to one query.

    Attributes:
        example: the number of the query's example.
        tokens: labelled tokens of the query.
        right: how many of them were predicted right.
        bits: negative log2-likelihood of all of them.
        question: None where the task has no questions in words.
        decoded: what was generated; None where answers are not scored by shared words.
    """

    example: int
    tokens: int
    right: int
    bits: float
    question: Question | None
    decoded: str | None


class _Evaluator:
    """Evaluates examples in a shuffled order, so that neighbours in a file are not each other's control."""

    def __init__(self, memory: EvaluatedMemory, examples: Examples) -> None:
        self._memory = memory
        order = random.Random(0).sample(range(len(examples)), len(examples))
        self._examples = [examples[i] for i in order]
        if not any(label != IGNORED for e in self._examples for row in e.labels for label in row):
            raise InputError(
                "there is nothing to evaluate: the task holds out no question; raise task.params.held_out, or name "
                "other files, as in task.params.files=[test.json]"
            )
        queries = [query for example in self._examples for query in example.queries]
        self._longest = max(
            len(row) - row.count(IGNORED) for e in self._examples for row in e.labels
        )
        self._context = max((e.context for e in self._examples), key=len)
        self._query = max(queries, key=len)
        needed = len(self._context) + len(self._query)
        self._visible = context_visible(memory, needed) if self._context else None
        self._answers: dict[str, list[_Answer]] = defaultdict(list)

    def run(self) -> AnswerEvaluation:
        meter, seen = Meter(self._memory.backbone.info.device), 0
        for indices in track([*parts(len(self._examples), self._size())], "evaluate", "batch"):
            part = [self._examples[index] for index in indices]
            context = collate(part)["batch"].context
            state = meter.timed("write", self._memory.write, context).state
            meter.written(state, len(part))
            others = _others([example.context for example in part])
            for name, reader, given in readings(
                self._memory, state, self._visible, context, others
            ):
                if name == "full_context":
                    meter.cached(given, len(part))
                self._answers[name] += meter.timed(name, self._score, reader, given, part, seen)
            seen += len(part)
        if not self._answers["memory"]:
            raise InputError(
                "there is nothing to evaluate: no reader predicts the one token asked for"
            )
        groups: dict[str, list[_Answer]] = defaultdict(list)
        for answer in self._answers["memory"]:
            if answer.question is not None:
                groups[answer.question.group].append(answer)
        scores = {name: _scores(answers) for name, answers in self._answers.items()}
        return AnswerEvaluation(
            contexts=seen,
            **meter.cost(),
            memory=scores["memory"],
            unwritten=scores["unwritten"],
            zero_state=scores["zero_state"],
            shuffled_state=scores.get("shuffled_state"),
            full_context=scores.get("full_context"),
            groups={name: _scores(answers) for name, answers in groups.items()},
        )

    def _size(self) -> int:
        """Return how many examples make a batch."""
        queries = max(len(example.queries) for example in self._examples)
        tokens = len(self._context) + queries * len(self._query)
        vocabulary = self._memory.backbone.tokenizer.vocab_size
        return min(_MAX_TOKENS, _MAX_LOGITS // vocabulary) // tokens

    def _score(
        self, memory: EvaluatedMemory, state: MemoryState, part: Sequence[Example], number: int
    ) -> list[_Answer]:
        """Return the answers to all queries of a part, whose first example has that number."""
        batch = collate(part)["batch"]
        if self._visible is not None:
            batch.labels[..., 0] = IGNORED
        found = memory.predict(state, batch.queries, batch.labels)
        shape = batch.queries.ids.shape[:-1]
        tokens, right, bits = (counts.tolist() for counts in _counts(found, shape))
        places = [(row, column) for row, e in enumerate(part) for column in range(len(e.queries))]
        decoded = self._decode(memory, state, part)
        return [
            _Answer(
                number + row,
                tokens[row][column],
                right[row][column],
                bits[row][column],
                _question(part[row], column),
                answer,
            )
            for (row, column), answer in zip(places, decoded, strict=True)
            if tokens[row][column]
        ]

    def _decode(
        self, memory: EvaluatedMemory, state: MemoryState, part: Sequence[Example]
    ) -> Iterator[str | None]:
        """Decode behind each prompt, no longer than the longest right answer; None where words are not scored."""
        asked = [
            (row, query[: label.count(IGNORED)])
            for row, example in enumerate(part)
            if _in_words(example)
            for query, label in zip(example.queries, example.labels, strict=True)
        ]
        answers: Iterator[list[int]] = iter(())
        if asked:
            rows, prompts = zip(*asked, strict=True)
            given, query = state.rows(torch.tensor(rows)), Tokens.from_rows([*prompts])
            answers = iter(memory.generate(given, query, max_new_tokens=self._longest).tolist())
        tokenizer, ends = memory.backbone.tokenizer, memory.backbone.info.end_ids
        for example in part:
            for _ in example.queries:
                words = _in_words(example)
                yield tokenizer.decode(text_of(next(answers), ends)) if words else None


def _in_words(example: Example) -> bool:
    return isinstance(example, QuestionsExample) and example.in_words


def _question(example: Example, column: int) -> Question | None:
    return example.questions[column] if isinstance(example, QuestionsExample) else None


def _others(contexts: Sequence[Sequence[int]]) -> list[int] | None:
    """Return for each context the index of the next one that differs; None where some context has none."""
    others = []
    for own, context in enumerate(contexts):
        following = chain(range(own + 1, len(contexts)), range(own))
        other = next((i for i in following if contexts[i] != context), None)
        if other is None:
            return None
        others.append(other)
    return others


def _counts(found: Predictions, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each query (B, Q) its labelled tokens, those predicted right, and their negative log2-likelihood."""
    right = found.logits.argmax(-1) == found.labels
    lost = functional.cross_entropy(found.logits.float(), found.labels, reduction="none")
    each = (torch.ones_like(found.labels), right.long(), lost.double() / math.log(2))
    tokens, rights, bits = (found.sums(values, shape) for values in each)
    return tokens, rights, bits


def _scores(answers: Sequence[_Answer]) -> AnswerScores:
    tokens = sum(answer.tokens for answer in answers)
    exact: dict[int, list[bool]] = defaultdict(list)
    for answer in answers:
        exact[answer.example].append(answer.right == answer.tokens)
    share = sum(map(sum, exact.values())) / len(answers)
    count = effective_count(
        [sum(own) / len(own) for own in exact.values()], [len(own) for own in exact.values()]
    )
    pairs = [
        (a.decoded, a.question.answers) for a in answers if a.decoded is not None and a.question
    ]
    return AnswerScores(
        questions=len(answers),
        tokens=tokens,
        exact_match=share,
        interval=wilson(share, count),
        token_accuracy=sum(answer.right for answer in answers) / tokens,
        bits=sum(answer.bits for answer in answers) / tokens,
        word_match=fmean(word_match(*pair) for pair in pairs) if pairs else None,
        word_contained=fmean(word_contained(*pair) for pair in pairs) if pairs else None,
        word_f1=fmean(word_f1(*pair) for pair in pairs) if pairs else None,
    )
