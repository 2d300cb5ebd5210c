"""Plain text in chunks: a chunk is written and read back, or written and gone on from."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from memwrite.backbones.segmentation import sentences
from memwrite.backbones.tokenizers import Tokenizer
from memwrite.tasks.base import Example, Examples
from memwrite.tasks.text import ParagraphsConfig, check_room, random_window, windows


@dataclass(frozen=True)
class ReconstructionConfig(ParagraphsConfig):
    """Which text; other attributes as in `ParagraphsConfig`.

    Attributes:
        length: tokens per chunk.

    Raises:
        ValueError: a value is out of range.
    """

    length: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")

    @property
    def window(self) -> int:
        """Tokens of text per example."""
        return self.length


@dataclass(frozen=True)
class ContinuationConfig(ParagraphsConfig):
    """Which text; other attributes as in `ParagraphsConfig`.

    Attributes:
        context: tokens that are written.
        length: tokens behind them that are predicted.

    Raises:
        ValueError: a value is out of range.
    """

    context: int = 256
    length: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def window(self) -> int:
        """Tokens of text per example."""
        return self.context + self.length


C = TypeVar("C", bound=ReconstructionConfig | ContinuationConfig)

#: A token's id, and the sentence it belongs to.
Place = tuple[int, int]


class ChunksTask(ABC, Generic[C]):
    """Windows of text files, each made an example.

    Args:
        config: of the task.
        tokenizer: makes tokens of the text.

    Raises:
        ConfigError, InputError: a file cannot be read.
    """

    def __init__(self, config: C, tokenizer: Tokenizer) -> None:
        self.config: C = config
        self._tokenizer = tokenizer
        self._train, self._held_out = (
            [self._stream(file) for file in part] for part in config.paragraphs()
        )

    @abstractmethod
    def example(self, chunk: Sequence[Place]) -> Example:
        """Return the example of a window."""

    def training(self, count: int, seed: int) -> Examples:
        """Return random windows, a file's chance being proportional to its size.

        Raises:
            InputError: no file has more than one window to train on.
        """
        check_room(self._train, self.config.window)
        return _RandomChunks(self, self._train, count, f"training/{seed}")

    def evaluation(self) -> Examples:
        """Return the held-out paragraphs, cut into whole windows one after another."""
        stream = [place for part in self._held_out for place in part]
        size = self.config.window
        return [self.example(chunk) for chunk in windows(stream, size) if len(chunk) == size]

    def fresh(self, count: int, seed: int) -> Examples:
        """Return random windows of the held-out paragraphs.

        Raises:
            InputError: none of the files has held out more than one window.
        """
        check_room(self._held_out, self.config.window)
        return _RandomChunks(self, self._held_out, count, f"fresh/{seed}")

    def _stream(self, paragraphs: Sequence[str]) -> list[Place]:
        """Put paragraphs between start and end tokens; every sentence is encoded, and numbered, by itself."""
        stream: list[Place] = []
        number = 0
        for text in paragraphs:
            pieces = [self._tokenizer.encode(piece) for piece in sentences(text)]
            pieces[0].insert(0, self._tokenizer.bos_id)
            pieces[-1].append(self._tokenizer.eos_id)
            stream.extend((i, number + own) for own, piece in enumerate(pieces) for i in piece)
            number += len(pieces)
        return stream

    def _written(self, chunk: Sequence[Place]) -> tuple[list[int], list[int]]:
        """Return ids and segments of a context, closed by an end token as in `Memory.encode`."""
        first, last = chunk[0][1], chunk[-1][1]
        ids = [*(i for i, _ in chunk), self._tokenizer.eos_id]
        return ids, [number - first for number in (*(number for _, number in chunk), last)]


class ReconstructionTask(ChunksTask[ReconstructionConfig]):
    """A chunk is the context, the query is empty, and the chunk is the answer, with the end token behind it.

    The first token is predicted by the memory alone, where its reader can (`ReadOutput.first_logits`), and else ignored.
    """

    def example(self, chunk: Sequence[Place]) -> Example:
        """Return the example of a window, as the class says."""
        ids, segments = self._written(chunk)
        return Example(ids, [list(ids)], [list(ids)], segments)


class ContinuationTask(ChunksTask[ContinuationConfig]):
    """A chunk is the context and the chunk that follows it is the query, all of whose tokens are to be predicted.

    The first one is predicted by the memory alone, where its reader can (`ReadOutput.first_logits`), and else ignored.
    """

    def example(self, chunk: Sequence[Place]) -> Example:
        """Return the example of a window, as the class says."""
        ids, segments = self._written(chunk[: self.config.context])
        following = [i for i, _ in chunk[self.config.context :]]
        return Example(ids, [following], [list(following)], segments)


@dataclass(frozen=True)
class _RandomChunks:
    task: ChunksTask[Any]
    streams: list[list[Place]]
    count: int
    key: str

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(f"example {index} of {self.count}")
        rng = random.Random(f"{self.key}/{index}")
        return self.task.example(random_window(self.streams, self.task.config.window, rng))
