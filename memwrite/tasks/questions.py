"""Questions on texts: what the tasks that are read from question-answering files have in common."""

from __future__ import annotations

import random
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from memwrite.backbones.segmentation import opened, sentences
from memwrite.backbones.tokenizers import Tokenizer
from memwrite.errors import InputError
from memwrite.tasks.base import IGNORED, Example, Examples
from memwrite.tasks.files import FilesConfig


@dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
        prompt: as the model sees it.
        answers: the right ones; training teaches the first.
        group: what the question is counted under in an evaluation.
    """

    prompt: str
    answers: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Passage:
    """A text with its questions.

    Attributes:
        pieces: the text, cut into its segments.
        questions: at least one.
    """

    pieces: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class QuestionsExample(Example):
    """An example whose queries are questions in words.

    Attributes:
        questions: one for each query, which is its prompt with the first of its answers and an end token behind it.
        in_words: whether an answer is also worth something if it shares words with a right one (F1).
    """

    questions: tuple[Question, ...] = ()
    in_words: bool = True


@dataclass(frozen=True)
class QuestionsConfig(FilesConfig):
    """What all tasks of questions on texts share; `files`, `folder` and `held_out` as in `FilesConfig`.

    Attributes:
        tokens: per context at most; longer ones are left out. None for no limit.
        queries: questions per example at most; None for no limit. In training those of an example are drawn from its
            context's, in evaluation a context with more of them comes several times.
        bucket: training contexts of about one length that come one after the other; the batch size spares most of
            the padding, 1 shuffles freely.

    Raises:
        ValueError: a value is out of range.
    """

    #: Whether answers are phrases, as in `QuestionsExample.in_words`.
    in_words: ClassVar[bool] = True

    tokens: int | None = None
    queries: int | None = 8
    bucket: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("queries", "tokens", "bucket"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @abstractmethod
    def read(self, path: Path) -> list[list[Passage]]:
        """Read the passages of a file, in groups that are never divided between training and evaluation.

        Raises:
            ConfigError: the file cannot be read.
            InputError: it is damaged.
        """

    def passages(self) -> tuple[list[Passage], list[Passage]]:
        """Return the passages for training and for evaluation; raises as `read`."""
        train, held_out = (
            [passage for groups in part for group in groups for passage in group]
            for part in self.split(self.read)
        )
        return train, held_out

    def texts(self) -> Iterator[str]:
        """Yield the training texts, for a tokenizer to learn from; raises as `read`."""
        for passage in self.passages()[0]:
            yield " ".join(passage.pieces)
            for question in passage.questions:
                yield f"{question.prompt} {question.answers[0]}"


class QuestionsTask:
    """Passages, each with many questions at once.

    The pieces of a context are separated by spaces. It is opened as the tokenizer does and closed by an end token, as in
    `Memory.encode`, so that a state of `memwrite write` can be given the questions of the task. Prompt and answer have the
    tokens of the text that they make together.

    Args:
        config: names the files and how they are cut.
        tokenizer: tokenizes them.

    Raises:
        ConfigError, InputError: a file cannot be read or is damaged.
    """

    def __init__(self, config: QuestionsConfig, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._encode = lru_cache(maxsize=1 << 16)(self._encoded)
        self._config = config
        self._train, self._held_out = (self._short(p, config.tokens) for p in config.passages())

    def training(self, count: int, seed: int) -> Examples:
        """Return `count` examples, all passages in random order again and again.

        With buckets, in each round up to `bucket - 1` passages drawn at random are left out.

        Raises:
            InputError: there is no passage to train on.
        """
        if not self._train:
            raise InputError("the files leave no text to train on: lower task.params.held_out")
        order = _Order([sum(map(len, self._context(p))) for p in self._train], self._config.bucket)
        return _Shuffled(self, self._train, order, count, f"training/{seed}")

    def evaluation(self) -> Examples:
        """Return the held-out passages in order, with all of their questions."""
        return [self.example(part) for passage in self._held_out for part in self._parts(passage)]

    def _parts(self, passage: Passage) -> Iterator[Passage]:
        questions = passage.questions
        size = self._config.queries or len(questions)
        for start in range(0, len(questions), size):
            yield replace(passage, questions=questions[start : start + size])

    def fresh(self, count: int, seed: int) -> Examples:
        """Return `count` examples of the held-out passages in random order.

        Raises:
            InputError: none is held out.
        """
        if not self._held_out:
            raise InputError("the files hold nothing out: raise task.params.held_out")
        order = _Order([0] * len(self._held_out))
        return _Shuffled(self, self._held_out, order, count, f"fresh/{seed}")

    def drawn(self, passage: Passage, rng: random.Random) -> QuestionsExample:
        """Return the example of a passage with at most `queries` of its questions, drawn at random."""
        questions = passage.questions
        if self._config.queries is not None and len(questions) > self._config.queries:
            questions = tuple(rng.sample(questions, self._config.queries))
        return self.example(replace(passage, questions=questions))

    def example(self, passage: Passage) -> QuestionsExample:
        """Return the example of a passage with all of its questions."""
        pieces = self._context(passage)
        pairs = [
            (prompt, [*answer, self._tokenizer.eos_id])
            for prompt, answer in (
                self._encode((question.prompt, question.answers[0]))
                for question in passage.questions
            )
        ]
        return QuestionsExample(
            context=[i for piece in pieces for i in piece],
            queries=[[*prompt, *answer] for prompt, answer in pairs],
            labels=[[*[IGNORED] * len(prompt), *answer] for prompt, answer in pairs],
            segments=[number for number, piece in enumerate(pieces) for _ in piece],
            questions=passage.questions,
            in_words=self._config.in_words,
        )

    def _context(self, passage: Passage) -> list[list[int]]:
        pieces = opened(self._tokenizer, self._encode(passage.pieces or ("",)))
        return [*pieces[:-1], [*pieces[-1], self._tokenizer.eos_id]]

    def _encoded(self, pieces: tuple[str, ...]) -> list[list[int]]:
        """Return the ids of each piece of a text in which spaces stand between them: those of the whole text, cut."""
        first, *others = pieces
        return self._tokenizer.segments(
            " ".join(pieces), lambda _: [first, *(f" {piece}" for piece in others)]
        )

    def _short(self, passages: Sequence[Passage], tokens: int | None) -> Sequence[Passage]:
        if tokens is None:
            return passages
        short = [p for p in passages if sum(map(len, self._context(p))) <= tokens]
        if len(short) < len(passages):
            warnings.warn(
                f"{len(passages) - len(short)} of {len(passages)} contexts are longer than task.params.tokens = "
                f"{tokens} tokens and are left out",
                stacklevel=3,
            )
        return short


def pieces(text: str) -> tuple[str, ...]:
    """Cut a text into its sentences, which become segments."""
    return tuple(piece.strip() for piece in sentences(text) if piece.strip())


def prompt(question: str) -> str:
    """Return the prompt of a question, in the form that models pretrained on the web know."""
    return f"\nQuestion: {question}\nAnswer:"


class _Order:
    """Random orders of passages of these lengths, in which `bucket` of like length follow each other."""

    def __init__(self, lengths: Sequence[int], bucket: int = 1) -> None:
        self._lengths = lengths
        self._bucket = min(bucket, len(lengths))
        self.count = len(lengths) // self._bucket * self._bucket
        self.of = lru_cache(maxsize=2)(self._of)

    def _of(self, key: str) -> list[int]:
        """Indices of `count` of the passages; depends on the key alone."""
        rng = random.Random(key)
        drawn = rng.sample(range(len(self._lengths)), self.count)
        drawn.sort(key=self._lengths.__getitem__)
        starts = range(0, self.count, self._bucket)
        buckets = [drawn[start : start + self._bucket] for start in starts]
        rng.shuffle(buckets)
        return [index for bucket in buckets for index in bucket]


@dataclass(frozen=True)
class _Shuffled:
    task: QuestionsTask
    passages: Sequence[Passage]
    order: _Order
    count: int
    key: str

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> QuestionsExample:
        if not 0 <= index < self.count:
            raise IndexError(f"example {index} of {self.count}")
        epoch, place = divmod(index, self.order.count)
        passage = self.passages[self.order.of(f"{self.key}/{epoch}")[place]]
        return self.task.drawn(passage, random.Random(f"{self.key}/{index}"))
