"""Text that goes on: a passage is written, and the words behind it are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from memwrite.backbones.segmentation import sentences
from memwrite.tasks.base import IGNORED, Example, Examples
from memwrite.tasks.chunks import ChunksTask, ContinuationConfig, Place


@dataclass(frozen=True)
class LanguageConfig(ContinuationConfig):
    """Which text; other attributes as in `ContinuationConfig`.

    Attributes:
        examples: the most passages of the held-out text that are evaluated.

    Raises:
        ValueError: a value is out of range.
    """

    context: int = 160
    length: int = 96
    examples: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.examples < 1:
            raise ValueError(f"examples must be at least 1, got {self.examples}")
        if self.length < 2:
            raise ValueError(f"length must be at least 2, got {self.length}")


class LanguageTask(ChunksTask[LanguageConfig]):
    """A passage as a model meets it: opened as the tokenizer opens a text, cut in the middle, never closed.

    The first token behind the context is not scored, because nothing predicts it where there is no memory.
    """

    def example(self, chunk: Sequence[Place]) -> Example:
        """Return the example of a window: context, and what follows it as the only query."""
        written, following = chunk[: self.config.context], chunk[self.config.context :]
        opening = self._tokenizer.opening
        ids = [*opening, *(i for i, _ in written)]
        first = written[0][1]
        segments = [0] * len(opening) + [number - first for _, number in written]
        query = [i for i, _ in following]
        return Example(ids, [query], [[IGNORED, *query[1:]]], segments)

    def evaluation(self) -> Examples:
        """Return held-out passages, none of which shares a token with another.

        Those that lie within one paragraph come first, each from the paragraph's beginning; then those that begin
        with a paragraph and run over the ones behind it. Of several files each has its turn.
        """
        within: list[list[list[Place]]] = []
        across: list[list[list[Place]]] = []
        for file in self.config.paragraphs()[1]:
            within.append([])
            across.append([])
            self._cut(file, within[-1], across[-1])
        passages = [*_in_turn(within), *_in_turn(across)]
        return [self.example(passage) for passage in passages[: self.config.examples]]

    def _cut(
        self, paragraphs: Sequence[str], within: list[list[Place]], across: list[list[Place]]
    ) -> None:
        """Add the passages of one file to those within a paragraph and those across several."""
        size = self.config.window
        run: list[str] = []
        for paragraph in paragraphs:
            places = self._stream([paragraph])
            if len(places) >= size:
                within.append(places[:size])
                run = []
                continue
            run.append(paragraph)
            if len(joined := self._stream(run)) >= size:
                across.append(joined[:size])
                run = []

    def _stream(self, paragraphs: Sequence[str]) -> list[Place]:
        """Encode paragraphs as one text, with empty lines between them; the places number its sentences."""
        if not paragraphs:
            return []
        pieces = self._tokenizer.segments("\n\n".join(paragraphs), sentences)
        return [(i, number) for number, piece in enumerate(pieces) for i in piece]


def _in_turn(files: Sequence[Sequence[list[Place]]]) -> Iterator[list[Place]]:
    """Yield the first passage of every file, then the second of each that has one, and so on."""
    for turn in zip_longest(*files):
        yield from (passage for passage in turn if passage is not None)
