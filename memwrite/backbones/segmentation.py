"""Texts and chat messages as token ids, in the pieces that a writer writes: whole, messages, or sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain

import torch

from memwrite.backbones.chat import Message
from memwrite.backbones.tokenizers import Tokenizer
from memwrite.errors import InputError
from memwrite.protocols import Granularity
from memwrite.state import Tokens

#: A text, or chat messages {"role": ..., "content": ...} for the tokenizer's chat template.
TextOrMessages = str | Sequence[Message]

# The space belongs to the piece that follows it, as tokenizers have it.
_BOUNDARY = re.compile(r"(?<=[.!?;:…。！？])(?=\s)|(?=\n\n)")


def sentences(text: str) -> list[str]:
    """Cut `text` behind its stops and before its empty lines; joined again it is the same."""
    return [piece for piece in _BOUNDARY.split(text) if piece]


def tokenize_segments(
    tokenizer: Tokenizer, text: TextOrMessages, granularity: Granularity, answer: bool = False
) -> list[list[int]]:
    """Return the ids of a text, of each of its sentences, or of each chat message.

    Args:
        tokenizer: the tokenizer.
        text: a text or chat messages.
        granularity: of the writer.
        answer: whether messages are to be answered, so that the assistant's turn is opened.

    Raises:
        InputError: there is no text, or it cannot be encoded.
    """
    split = sentences if granularity == "sentence" else _whole
    if not isinstance(text, str):
        check_messages(text)
    try:
        if isinstance(text, str):
            segments = tokenizer.segments(text, split)
        else:
            segments = tokenizer.chat(text, answer, split)
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not valid Unicode: character {error.start}") from None
    segments = [ids for ids in segments if ids]
    if not segments:
        raise InputError("there is nothing to read: give a text or messages")
    return segments


def check_messages(messages: object) -> None:
    """Refuse what are no chat messages.

    Raises:
        InputError: it is something else, or empty.
    """
    if not isinstance(messages, (list, tuple)):
        raise InputError(f"give a text or chat messages, not a {type(messages).__name__}")
    if not all(_is_message(message) for message in messages):
        raise InputError("a chat message is {'role': ..., 'content': ...}, both of them texts")
    if not messages:
        raise InputError("there is nothing to read: give a text or messages")


def opened(tokenizer: Tokenizer, segments: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the segments of a text behind what the tokenizer itself puts before a text, if it is not there already."""
    first, *others = segments
    opening = list(tokenizer.opening)
    begins = opening and list(first[: len(opening)]) == opening
    return [list(first) if begins else [*opening, *first], *(list(segment) for segment in others)]


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _whole(text: str) -> list[str]:
    return [text]


def batch_segments(
    rows: Sequence[Sequence[Sequence[int]]], granularity: Granularity, device: torch.device
) -> Tokens:
    """Return B rows of pieces as right-padded tokens; where pieces are written one by one, each is a segment."""
    tokens = Tokens.from_rows([list(chain.from_iterable(row)) for row in rows], device)
    if granularity == "token":
        return tokens
    numbers = [[i for i, piece in enumerate(row) for _ in piece] for row in rows]
    segments = Tokens.from_rows(numbers, device).ids.masked_fill(~tokens.mask, -1)
    return Tokens(tokens.ids, tokens.mask, segments)
