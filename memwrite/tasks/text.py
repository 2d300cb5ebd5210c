"""Language modelling on plain text files: no context, one query a window of text."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

from memwrite.backbones.tokenizers import Tokenizer
from memwrite.errors import InputError
from memwrite.tasks.base import IGNORED, Example, Examples
from memwrite.tasks.files import FilesConfig, read_text

T = TypeVar("T")


@dataclass(frozen=True)
class ParagraphsConfig(FilesConfig):
    """UTF-8 text files, whose paragraphs end at an empty line; attributes as in `FilesConfig`."""

    held_out: float = 0.02

    def paragraphs(self) -> tuple[list[list[str]], list[list[str]]]:
        """Return for each file its paragraphs for training and for evaluation.

        Raises:
            ConfigError, InputError: a file cannot be read.
        """
        return self.split(read_paragraphs)

    def texts(self) -> Iterator[str]:
        """Return the training paragraphs of all files, for a tokenizer to learn from; raises as `paragraphs`."""
        return chain.from_iterable(self.paragraphs()[0])


@dataclass(frozen=True)
class TextConfig(ParagraphsConfig):
    """Which text, and how it is cut; other attributes as in `ParagraphsConfig`.

    Attributes:
        length: tokens per window.
        repeat: share of windows that open with a passage given twice, which teaches a small model to copy.

    Raises:
        ValueError: a value is out of range.
    """

    length: int = 256
    repeat: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 8:
            raise ValueError(f"length must be at least 8, got {self.length}")
        if not 0 <= self.repeat < 1:
            raise ValueError(f"repeat must be at least 0 and below 1, got {self.repeat}")


class TextTask:
    """Windows of text files.

    Args:
        config: see `TextConfig`.
        tokenizer: makes tokens of the text.

    Raises:
        ConfigError: a file cannot be read.
        InputError: no file has more than one window to train on, though not all is held out.
    """

    def __init__(self, config: TextConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._train, self._held_out = (
            [self._stream(file) for file in part] for part in config.paragraphs()
        )
        if config.held_out < 1:
            check_room(self._train, config.length)

    def _stream(self, paragraphs: list[str]) -> list[int]:
        start, end = self._tokenizer.bos_id, self._tokenizer.eos_id
        return [i for text in paragraphs for i in (start, *self._tokenizer.encode(text), end)]

    def training(self, count: int, seed: int) -> Examples:
        """Return random windows, a file's chance being proportional to its size.

        Raises:
            InputError: no file has more than one window to train on.
        """
        check_room(self._train, self._config.length)
        return _RandomWindows(self._config, self._tokenizer, self._train, count, seed)

    def evaluation(self) -> Examples:
        """Return the held-out paragraphs, cut into windows one after another."""
        stream = [i for part in self._held_out for i in part]
        return [_example(part) for part in windows(stream, self._config.length) if len(part) > 1]

    def fresh(self, count: int, seed: int) -> Examples:
        """Return random windows of the held-out paragraphs.

        Raises:
            InputError: none of the files has held out more than one window.
        """
        check_room(self._held_out, self._config.length)
        return _RandomWindows(self._config, self._tokenizer, self._held_out, count, seed)


@dataclass(frozen=True)
class _RandomWindows:
    config: TextConfig
    tokenizer: Tokenizer
    streams: list[list[int]]
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Example:
        rng = random.Random(f"{self.seed}/{index}")
        length = self.config.length
        window = random_window(self.streams, length, rng)
        if rng.random() < self.config.repeat:
            passage = window[: rng.randrange(length // 16, length // 2)]
            repeated = [self.tokenizer.bos_id, *passage, self.tokenizer.eos_id]
            window = [*repeated, *repeated, *window][:length]
        return _example(window)


def _example(window: Sequence[int]) -> Example:
    return Example([], [[*window]], [[IGNORED, *window[1:]]])


def check_room(streams: Sequence[Sequence[T]], length: int) -> None:
    """Check that a stream is longer than `length`.

    Raises:
        InputError: none is.
    """
    if all(len(stream) <= length for stream in streams):
        raise InputError(f"the files hold less than one window of {length} tokens")


def random_window(streams: Sequence[Sequence[T]], length: int, rng: random.Random) -> list[T]:
    """Draw `length` items in a row, of a stream that is longer; the longer, the more likely."""
    long = [stream for stream in streams if len(stream) > length]
    (stream,) = rng.choices(long, weights=[len(stream) for stream in long])
    begin = rng.randrange(len(stream) - length)
    return list(stream[begin : begin + length])


def windows(stream: Sequence[T], length: int) -> list[list[T]]:
    """Cut a stream into pieces of `length`, one after another; the last one may be shorter."""
    return [list(stream[i : i + length]) for i in range(0, len(stream), length)]


def read_paragraphs(path: Path) -> list[str]:
    """Read the paragraphs of a file.

    Raises:
        ConfigError: it cannot be read.
        InputError: it is not UTF-8.
    """
    return [p for p in re.split(r"\n\s*\n", _natural(read_text(path))) if p.strip()]


def _natural(text: str) -> str:
    """Join WikiText's spaced-out tokens (" @-@ ", " , ") as people write them; leave other text unchanged."""
    if " @-@ " not in text:
        return text
    for mark in ("-", ",", "."):
        text = text.replace(f" @{mark}@ ", mark)
    text = text.replace("<unk>", "").replace(" 's", "'s").replace(" n't", "n't")
    text = re.sub(r" ([,.;:!?)\]%])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    return "\n".join(re.sub(r" +", " ", line).strip() for line in text.split("\n"))
