"""What a memory answers on any task: exact match, token accuracy, bits and shared words, beside controls."""

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
from memwrite.evaluation.key_value import context_visible
from memwrite.evaluation.scores import effective_count, wilson
from memwrite.evaluation.words import word_f1, word_match
from memwrite.state import MemoryState, Tokens
from memwrite.tasks.base import IGNORED, EvaluatedMemory, Example, Examples, collate
from memwrite.tasks.questions import AskedExample, Question
from memwrite.training.loss import aligned
from memwrite.utils.progress import track

# Logits of one batch, in numbers, and tokens of one batch at most.
_LOGITS, _TOKENS = 1 << 28, 1 << 14


@torch.no_grad()
def evaluate(memory: EvaluatedMemory, examples: Examples) -> AnswerEvaluation:
    """Write every context once and ask all of its questions, in evaluation mode.

    A query's first token counts only where every column predicts it: so not beside the full context, after which
    nothing stands that could.

    Args:
        memory: whose mode is as before afterwards.
        examples: of any task.

    Raises:
        InputError: they ask nothing.
    """
    training = memory.training
    memory.eval()
    try:
        return _Evaluator(memory, examples).run()
    finally:
        memory.train(training)


@dataclass(frozen=True)
class _Answer:
    """To one query of the example of that number: its labelled tokens, how many of them are right, and their bits.

    `question` and `said`, what was decoded, are None where the task does not ask in words or is not scored so.
    """

    example: int
    tokens: int
    right: int
    bits: float
    question: Question | None
    said: str | None


class _Evaluator:
    """Examples come in an order of their own, so that neighbours in a file are not each other's control."""

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
        whole = Example(self._context, [self._query], [])
        self._full = context_visible(memory, whole) if self._context else None
        self._answers: dict[str, list[_Answer]] = defaultdict(list)

    def run(self) -> AnswerEvaluation:
        floats, size, seen = 0, 0, 0
        for part in track([*self._batches()], "evaluate", "batch"):
            state = self._memory.write(collate(part)["batch"].context).state
            floats = max(floats, state.floats // len(part))
            size = max(size, state.nbytes // len(part))
            for name, memory, given in self._readings(part, state):
                self._answers[name] += self._asked(memory, given, part, seen)
            seen += len(part)
        if not self._answers["memory"]:
            raise InputError(
                "there is nothing to evaluate: no reader predicts the one token asked for"
            )
        groups: dict[str, list[_Answer]] = defaultdict(list)
        for answer in self._answers["memory"]:
            if answer.question is not None:
                groups[answer.question.group].append(answer)
        found = {name: _scores(answers) for name, answers in self._answers.items()}
        return AnswerEvaluation(
            contexts=seen,
            state_floats=floats,
            state_bytes=size,
            memory=found["memory"],
            zero_state=found["zero_state"],
            shuffled_state=found.get("shuffled_state"),
            full_context=found.get("full_context"),
            groups={name: _scores(answers) for name, answers in groups.items()},
        )

    def _batches(self) -> Iterator[list[Example]]:
        """Parts of nearly one size; at least 2 examples, where there are so many."""
        total = len(self._examples)
        queries = max(len(example.queries) for example in self._examples)
        size = len(self._context) + queries * len(self._query)
        most = min(_TOKENS, _LOGITS // self._memory.backbone.tokenizer.vocab_size)
        count = max(1, total // max(2, most // size))
        for part in range(count):
            yield self._examples[part * total // count : (part + 1) * total // count]

    def _readings(
        self, part: Sequence[Example], state: MemoryState
    ) -> Iterator[tuple[str, EvaluatedMemory, MemoryState]]:
        memory = self._memory
        yield "memory", memory, state
        yield "zero_state", memory, state.map(torch.zeros_like)
        if (others := _others([example.context for example in part])) is not None:
            yield "shuffled_state", memory, state.rows(torch.tensor(others))
        if self._full is not None:
            context = collate(part)["batch"].context
            yield "full_context", self._full, self._full.write(context).state

    def _asked(
        self, memory: EvaluatedMemory, state: MemoryState, part: Sequence[Example], number: int
    ) -> Iterator[_Answer]:
        """The answers to all queries of a part, whose first example has that number."""
        batch = collate(part)["batch"]
        if self._full is not None:
            batch.labels[..., 0] = IGNORED
        output = memory.read(state, batch.queries)
        logits, labels = aligned(output, batch.queries.to(output.logits.device), batch.labels)
        tokens, right, bits = (found.tolist() for found in _counts(logits, labels))
        places = [(row, column) for row, e in enumerate(part) for column in range(len(e.queries))]
        for (row, column), said in zip(places, self._said(memory, state, part), strict=True):
            if tokens[row][column]:
                yield _Answer(
                    number + row,
                    tokens[row][column],
                    right[row][column],
                    bits[row][column],
                    _question(part[row], column),
                    said,
                )

    def _said(
        self, memory: EvaluatedMemory, state: MemoryState, part: Sequence[Example]
    ) -> Iterator[str | None]:
        """What is decoded behind each prompt, no longer than the longest right answer; None where nobody cares."""
        if not all(isinstance(example, AskedExample) and example.in_words for example in part):
            yield from (None for example in part for _ in example.queries)
            return
        rows = [row for row, example in enumerate(part) for _ in example.queries]
        prompts = [
            query[: label.count(IGNORED)]
            for example in part
            for query, label in zip(example.queries, example.labels, strict=True)
        ]
        asked = Tokens.from_rows(prompts)
        new = memory.generate(state.rows(torch.tensor(rows)), asked, max_new_tokens=self._longest)
        tokenizer, ends = memory.backbone.tokenizer, memory.backbone.info.end_ids
        for row in new.tolist():
            yield tokenizer.decode(text_of(row, ends))


def _question(example: Example, column: int) -> Question | None:
    return example.questions[column] if isinstance(example, AskedExample) else None


def _others(contexts: Sequence[Sequence[int]]) -> list[int] | None:
    """For each context the place of the next one that differs from it; None where there is none for some."""
    found = []
    for own, context in enumerate(contexts):
        following = chain(range(own + 1, len(contexts)), range(own))
        other = next((i for i in following if contexts[i] != context), None)
        if other is None:
            return None
        found.append(other)
    return found


def _counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled tokens of each query (B, Q), those predicted right, and their negative log2-likelihood together."""
    asked = labels != IGNORED
    right = (logits.argmax(-1) == labels) & asked
    lost = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return asked.sum(-1), right.sum(-1), lost.double().reshape(labels.shape).sum(-1) / math.log(2)


def _scores(answers: Sequence[_Answer]) -> AnswerScores:
    tokens = sum(answer.tokens for answer in answers)
    exact: dict[int, list[bool]] = defaultdict(list)
    for answer in answers:
        exact[answer.example].append(answer.right == answer.tokens)
    share = sum(map(sum, exact.values())) / len(answers)
    count = effective_count(
        [sum(own) / len(own) for own in exact.values()], [len(own) for own in exact.values()]
    )
    said = [(a.said, a.question.answers) for a in answers if a.said is not None and a.question]
    return AnswerScores(
        questions=len(answers),
        tokens=tokens,
        exact_match=share,
        interval=wilson(share, count),
        token_accuracy=sum(answer.right for answer in answers) / tokens,
        bits=sum(answer.bits for answer in answers) / tokens,
        word_match=fmean(word_match(*pair) for pair in said) if said else None,
        word_f1=fmean(word_f1(*pair) for pair in said) if said else None,
    )
