"""Chat messages as a template renders them, the words of their authors kept apart from its special tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

from memwrite.errors import InputError

# Characters that tokenizers seldom join with what follows.
_ANCHORS = "\n\t.a"
# Masks of special tokens are of these characters, which no text is made of.
_PRIVATE = 0xF0000

Message = Mapping[str, str]


class Placing(Protocol):
    """Gives the ids of a text, each with the place of its first character."""

    def __call__(self, text: str, *, split_special: bool = True) -> list[tuple[int, int]]: ...


#: Splits a text into segments that are encoded by themselves.
Splitter = Callable[[str], list[str]]


def plain_chat(messages: Sequence[Message], answer: bool) -> list[str]:
    """Return messages as lines, for models without a template of their own."""
    lines = [f"{message['role']}: {message['content']}\n" for message in messages]
    return [*lines, "assistant:"] if answer else lines


class SpecialTokens:
    """The special tokens of a transformers tokenizer, which a template may say and its messages may not.

    Where a message spells one out, `mask` puts characters of private use in its place, one for each of its characters,
    so that in the rendered text only the template's own special tokens are still spelled.

    Args:
        tokenizer: of transformers.
        encode: gives the ids of a text; with `split_special=False`, special tokens in it as such.
    """

    def __init__(self, tokenizer: Any, encode: Callable[..., list[int]]) -> None:
        added = tokenizer.added_tokens_decoder
        special = [(i, token) for i, token in added.items() if token.special and token.content]
        # The longest first, as one may begin another.
        special.sort(key=lambda entry: -len(entry[1].content))
        self._tokens = {token.content: (i, token) for i, token in special}
        self._spelled = _any_of(self._tokens)
        self._masks = {
            content: chr(_PRIVATE + number) * len(content)
            for number, content in enumerate(self._tokens)
        }
        self._originals = {mask: content for content, mask in self._masks.items()}
        self._masked = _any_of(self._originals)
        # Some tokenizers put a space before a text, but none behind a special token, nor behind a line's end.
        first = next(iter(self._tokens), None)
        self._bare_behind = first is not None and encode(f"{first}a", split_special=False)[
            1:
        ] != encode("a")

    def mask(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return the messages with every special token that they spell out masked.

        Raises:
            InputError: they hold characters of private use, which stand for masks.
        """
        if self._spelled is None:
            return [dict(message) for message in messages]
        return [
            {key: self._mask(value) if isinstance(value, str) else value for key, value in m.items()}
            for m in messages
        ]  # fmt: skip

    def _mask(self, text: str) -> str:
        assert self._spelled is not None
        if any(_PRIVATE <= ord(c) < _PRIVATE + len(self._masks) for c in text):
            raise InputError(
                "a chat message holds characters of private use (U+F0000 and beyond): remove them"
            )
        return self._spelled.sub(lambda match: self._masks[match[0]], text)

    def unmask(self, text: str) -> str:
        """Return a rendered text as its messages spelled it."""
        if self._masked is None:
            return text
        return self._masked.sub(lambda match: self._originals[match[0]], text)

    def place(self, text: str, encode: Placing) -> list[tuple[int, int]]:
        """Return the ids of a rendered text with their places: its special tokens as such, its masked ones as text.

        Args:
            text: with masks.
            encode: gives the ids of a text; with `split_special=False`, special tokens in it as such.
        """
        assert self._spelled is not None
        placed: list[tuple[int, int]] = []
        start, before = 0, ""
        for match in [*self._spelled.finditer(text), None]:
            span = text[start : len(text) if match is None else match.start()]
            own = None if match is None else self._tokens[match[0]]
            if own is not None and own[1].lstrip:
                span = span.rstrip()
            placed += [(i, start + at) for i, at in self._span(span, before, encode)]
            if match is None or own is None:
                break
            placed.append((own[0], match.start()))
            start, before = match.end(), match[0]
            if own[1].rstrip:
                start += len(text[start:]) - len(text[start:].lstrip())
        return placed

    def _span(self, masked: str, before: str, encode: Placing) -> list[tuple[int, int]]:
        """Return the ids of what stands between two special tokens, `before` being the first of them, with places."""
        text = self.unmask(masked)
        if not text:
            return []
        if text == masked:
            ids = encode(before + text, split_special=False)
            return [(i, at - len(before)) for i, at in ids[1 if before else 0 :]]
        if before and self._bare_behind:
            for anchor in _ANCHORS:
                alone, ids = encode(anchor), encode(anchor + text)
                if ids[: len(alone)] == alone and all(at for _, at in ids[len(alone) :]):
                    return [(i, at - 1) for i, at in ids[len(alone) :]]
        return encode(text)


def _any_of(spellings: Iterable[str]) -> re.Pattern[str] | None:
    alternatives = "|".join(re.escape(spelling) for spelling in spellings)
    return re.compile(alternatives) if alternatives else None


def cut(placed: Sequence[tuple[int, int]], pieces: Sequence[str]) -> list[list[int]]:
    """Return the ids of each piece of a text: a token belongs to the piece in which it begins.

    Args:
        placed: the ids of the whole text with the place of their first characters.
        pieces: the text's pieces.
    """
    ends = list(accumulate(map(len, pieces)))
    ids: list[list[int]] = [[] for _ in pieces]
    piece = 0
    for token, start in placed:
        while piece < len(ends) - 1 and start >= ends[piece]:
            piece += 1
        ids[piece].append(token)
    return ids
