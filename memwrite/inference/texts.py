"""Contexts and prompts as tokens, each for what it is put behind: a text, or a user's message in a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from memwrite.backbones.conversation import Place, say
from memwrite.backbones.segmentation import batch_segments, opened, tokenize_segments
from memwrite.backbones.tokenizers import Tokenizer
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import InputError
from memwrite.protocols import Granularity
from memwrite.state import Tokens

T = TypeVar("T")


def context_tokens(
    backbone: TransformersBackbone,
    texts: str | Sequence[str],
    granularity: Granularity,
    opens: Sequence[bool],
    places: Sequence[Place],
) -> Tokens:
    """Return contexts (B, T), each opened as the tokenizer does and closed by the end token, or in a user's open turn.

    Args:
        backbone: the language model.
        texts: one or several.
        granularity: of the writer.
        opens: for each row whether it is the start of a text, or once for all rows; () where all are.
        places: for each row where the conversation stands that it goes on, or once for all; () where they are mere texts.

    Raises:
        InputError: there is no text, or an empty one.
    """
    tokenizer = backbone.tokenizer
    rows: list[list[list[int]]] = []
    for row, text in enumerate(texts_of(texts, "the context")):
        if not text.strip():
            raise InputError("the context is empty: give a text to write")
        if places:
            rows.append([_said(tokenizer, text, _of_row(row, places), Place.TEXT)])
            continue
        segments = tokenize_segments(tokenizer, text, granularity)
        if not opens or _of_row(row, opens):
            segments = opened(tokenizer, segments)
        rows.append([*segments[:-1], [*segments[-1], backbone.info.eos_id]])
    if not rows:
        raise InputError("there is no context: give at least one text to write")
    return batch_segments(rows, granularity, backbone.info.device)


def prompt_tokens(
    backbone: TransformersBackbone,
    texts: str | Sequence[str],
    opens: Sequence[bool],
    places: Sequence[Place],
) -> Tokens:
    """Return prompts (B, T), each to be continued, or to be answered as a user's message.

    Args:
        backbone: the language model.
        texts: one or several; of an empty one nothing is left.
        opens: for each row whether it is the start of a text, or once for all rows; () where all are.
        places: for each row where the conversation stands that it goes on, or once for all; () where they are mere texts.

    Raises:
        InputError: a text cannot be encoded, or a message is blank.
    """
    tokenizer = backbone.tokenizer
    rows: list[list[int]] = []
    for row, text in enumerate(texts_of(texts, "the prompt")):
        if not text:
            rows.append([])
        elif places:
            if not text.strip():
                raise InputError("the question is empty: ask something, or nothing at all")
            rows.append(_said(tokenizer, text, _of_row(row, places), Place.ANSWER))
        else:
            segments = tokenize_segments(tokenizer, text, "token")
            if not opens or _of_row(row, opens):
                segments = opened(tokenizer, segments)
            rows.append(segments[0])
    return Tokens.from_rows(rows)


def _of_row(row: int, values: Sequence[T]) -> T:
    """Return the value of a row, where one may stand for all rows."""
    return values[min(row, len(values) - 1)]


def _said(tokenizer: Tokenizer, text: str, start: Place, stop: Place) -> list[int]:
    return say(tokenizer, [{"role": "user", "content": text}], start, stop)


def texts_of(given: object, what: str) -> Sequence[str]:
    """Return the texts that were given, one or several.

    Raises:
        InputError: something else was given.
    """
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Sequence) or isinstance(given, (bytes, bytearray)):
        raise InputError(
            f"{what} must be a text or a list of texts, got a {type(given).__name__}: read a file first"
        )
    for text in given:
        if isinstance(text, Mapping):
            raise InputError(f"{what} must be a text, not chat messages: use a session for these")
        if not isinstance(text, str):
            raise InputError(f"{what} must be a list of texts, but holds a {type(text).__name__}")
    return given
