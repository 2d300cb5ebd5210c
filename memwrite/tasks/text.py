"""Language modelling on plain text files: no context, one query a window of text."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memwrite.errors import ConfigError, InputError
from memwrite.tasks.base import IGNORED, Example, Examples
from memwrite.tokenizer import Codec


@dataclass(frozen=True)
class TextConfig:
    """Which text, and how it is cut.

    Attributes:
        files: UTF-8 text files; paragraphs end at an empty line.
        folder: what the files' names are relative to.
        length: tokens per window.
        repeat: share of windows that open with a passage said twice, which teaches a small model to copy.
        held_out: share of each file's paragraphs, its last ones, kept for evaluation.

    Raises:
        ValueError: a value is out of range.
    """

    files: list[str]
    folder: str = "."
    length: int = 256
    repeat: float = 0.0
    held_out: float = 0.02

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files must name at least one text file")
        if self.length < 8:
            raise ValueError(f"length must be at least 8, got {self.length}")
        for name in ("repeat", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )


class TextTask:
    """Windows of text files.

    Args:
        config: see `TextConfig`.
        codec: makes tokens of the text.

    Raises:
        InputError: a file is too small for one window.
    """

    def __init__(self, config: TextConfig, codec: Codec) -> None:
        self._config = config
        self._codec = codec
        train, held = _split(config)
        self._train, self._held = ([self._stream(file) for file in part] for part in (train, held))
        if sum(map(len, self._train)) <= config.length:
            raise InputError(f"the files hold less than one window of {config.length} tokens")

    def _stream(self, paragraphs: list[str]) -> list[int]:
        start, end = self._codec.start, self._codec.end
        return [i for text in paragraphs for i in (start, *self._codec.encode(text), end)]

    def training(self, count: int, seed: int) -> Examples:
        """Random windows, a file's chance being proportional to its size."""
        return _RandomWindows(self._config, self._codec, self._train, count, seed)

    def evaluation(self) -> Examples:
        """The held-out paragraphs, cut into windows one after another."""
        stream = [i for part in self._held for i in part]
        length = self._config.length
        windows = [stream[i : i + length] for i in range(0, len(stream), length)]
        return [_example(window) for window in windows if len(window) > 1]

    def fresh(self, count: int, seed: int) -> Examples:
        """Random windows of the held-out paragraphs.

        Raises:
            InputError: none of the files has held out more than one window.
        """
        length = self._config.length
        if all(len(stream) <= length for stream in self._held):
            raise InputError(f"the files hold out less than one window of {length} tokens")
        return _RandomWindows(self._config, self._codec, self._held, count, seed)


@dataclass(frozen=True)
class _RandomWindows:
    config: TextConfig
    codec: Codec
    streams: list[list[int]]
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Example:
        chance = random.Random(f"{self.seed}/{index}")
        length = self.config.length
        streams = [stream for stream in self.streams if len(stream) > length]
        (stream,) = chance.choices(streams, weights=[len(stream) for stream in streams])
        begin = chance.randrange(len(stream) - length)
        window = stream[begin : begin + length]
        if chance.random() < self.config.repeat:
            passage = window[: chance.randrange(length // 16, length // 2)]
            said = [self.codec.start, *passage, self.codec.end]
            window = [*said, *said, *window][:length]
        return _example(window)


def _example(window: list[int]) -> Example:
    return Example([], [window], [[IGNORED, *window[1:]]])


def read_texts(config: TextConfig) -> Iterator[str]:
    """The training paragraphs of all files, for a tokenizer to learn from."""
    for paragraphs in _split(config)[0]:
        yield from paragraphs


def _split(config: TextConfig) -> tuple[list[list[str]], list[list[str]]]:
    """For each file its paragraphs for training and for evaluation."""
    train, held = [], []
    for name in config.files:
        path = Path(config.folder) / name
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"task.params.files: '{path}' cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError as error:
            raise InputError(f"'{path}' is not UTF-8 text: byte {error.start}") from None
        paragraphs = [p for p in re.split(r"\n\s*\n", _natural(text)) if p.strip()]
        cut = len(paragraphs) - int(len(paragraphs) * config.held_out)
        train.append(paragraphs[:cut])
        held.append(paragraphs[cut:])
    return train, held


def _natural(text: str) -> str:
    """WikiText's spaced-out tokens (" @-@ ", " , ") as people write them; other text unchanged."""
    if " @-@ " not in text:
        return text
    for mark in ("-", ",", "."):
        text = text.replace(f" @{mark}@ ", mark)
    text = text.replace("<unk>", "").replace(" 's", "'s").replace(" n't", "n't")
    text = re.sub(r" ([,.;:!?)\]%])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    return "\n".join(re.sub(r" +", " ", line).strip() for line in text.split("\n"))
