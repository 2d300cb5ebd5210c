"""Text that goes on: a passage is written, and the words behind it are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        with a paragraph and run over the ones behind it.
        """
        size, limit = self.config.window, self.config.examples
        within: list[list[Place]] = []
        across: list[list[Place]] = []
        for file in self.config.paragraphs()[1]:
            run: list[str] = []
            for paragraph in file:
                places = self._stream([paragraph])
                if len(places) >= size:
                    within.append(places[:size])
                    run = []
                    continue
                run.append(paragraph)
                if len(joined := self._stream(run)) >= size:
                    across.append(joined[:size])
                    run = []
        return [self.example(passage) for passage in [*within, *across][:limit]]

    def _stream(self, paragraphs: Sequence[str]) -> list[Place]:
        """Encode paragraphs as one text, with empty lines between them; the places number its sentences."""
        if not paragraphs:
            return []
        pieces = self._tokenizer.segments("\n\n".join(paragraphs), sentences)
        return [(i, number) for number, piece in enumerate(pieces) for i in piece]
