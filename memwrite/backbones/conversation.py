"""Conversations that go on behind keys and values: the tokens of what is said next, as the chat template has them.

A template renders whole conversations, but the beginning of one that lives in keys and values is gone. A small
conversation that has come as far stands in for it: both are rendered, and the tokens of the small one are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from memwrite.backbones.chat import Message
from memwrite.backbones.segmentation import tokenize_segments
from memwrite.backbones.tokenizers import Tokenizer
from memwrite.errors import InputError

#: Stands between a text and what is said of it in the same message.
SEPARATOR = "\n\n"


class Place(Enum):
    """Where a conversation stands."""

    #: Nothing has been said, not even a system prompt.
    BEGINNING = auto()
    #: In a user's turn that is open and empty.
    TURN = auto()
    #: In a user's turn that is open, behind a text and a separator: the message may go on.
    TEXT = auto()
    #: Behind a user's message whose turn has not been closed: another message may follow.
    MESSAGE = auto()
    #: Where the assistant's answer begins.
    ANSWER = auto()


# Contents whose tokens have nothing in common, and which tokenizers do not join with a line's end before them.
_PROBES = ("a", "7", "(")


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


_EXCHANGE = (_user("a"), _assistant("b"))
_BEFORE: dict[Place, tuple[Message, ...]] = {
    Place.BEGINNING: (),
    Place.TURN: _EXCHANGE,
    Place.TEXT: (*_EXCHANGE, _user("a")),
    Place.MESSAGE: (*_EXCHANGE, _user("a")),
}


def say(tokenizer: Tokenizer, messages: Sequence[Message], start: Place, stop: Place) -> list[int]:
    """Return the ids that bring a conversation from `start` to `stop` by saying `messages`.

    Args:
        tokenizer: has a chat template.
        messages: at least one. In an open user's turn the first is a user's; to stop in one, the last is.
        start: where the conversation stands.
        stop: where it is to stand.

    Raises:
        InputError: the messages do not fit there, or the template refuses them.
    """
    if start in (Place.TURN, Place.TEXT) and messages[0]["role"] != "user":
        raise InputError(
            f"the user's turn is open, so the next message must be a user's, not one of role '{messages[0]['role']}'"
        )
    before = _BEFORE[start]
    joins = start is Place.TEXT or (
        start is Place.MESSAGE
        and messages[0]["role"] == "user"
        and not _admits_two_users(tokenizer)
    )
    known = _ids(tokenizer, before, start)
    content = messages[0]["content"]
    # White space at the beginning of a message may be one token with what stands before it.
    for first in (content, content.lstrip()):
        new = [{**messages[0], "content": first}, *messages[1:]]
        if joins:
            new[0] = _user(before[-1]["content"] + SEPARATOR + first)
        ids = _ids(tokenizer, [*(before[:-1] if joins else before), *new], stop)
        if ids[: len(known)] == known:
            return ids[len(known) :]
    raise InputError(
        "the tokenizer's chat template writes messages otherwise when others follow them, so that no conversation can go "
        "on behind this memory: continue a text with raw=True"
    )


def closing(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that close an answer and open the user's next turn."""
    ends = [
        _ids(tokenizer, [_EXCHANGE[0], _assistant(probe)], Place.TURN)[::-1] for probe in _PROBES
    ]
    return _common(ends)[::-1]


def separator(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that bring a conversation from `MESSAGE` to `TEXT`."""
    message = _ids(tokenizer, _BEFORE[Place.MESSAGE], Place.MESSAGE)
    return _ids(tokenizer, _BEFORE[Place.TEXT], Place.TEXT)[len(message) :]


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """Return the special token with which the template closes an answer; None where it has none."""
    try:
        first = closing(tokenizer)[:1] if tokenizer.has_template else []
    except InputError:  # the template does not take the messages that are tried
        return None
    return first[0] if first and not tokenizer.decode(first) else None


def _ids(tokenizer: Tokenizer, messages: Sequence[Message], place: Place) -> list[int]:
    """Return the ids of a whole conversation that has come to `place`."""
    if place is Place.BEGINNING:
        return []
    if place is Place.TURN:
        return _common([_rendered(tokenizer, [*messages, _user(probe)]) for probe in _PROBES])
    if place is Place.TEXT:
        *others, last = messages
        text = last["content"] + SEPARATOR
        return _common([_rendered(tokenizer, [*others, _user(text + p)]) for p in _PROBES])
    ids = _rendered(tokenizer, messages, place is Place.ANSWER)
    if place is Place.MESSAGE:
        ends = [_rendered(tokenizer, [*_EXCHANGE, _user(probe)])[::-1] for probe in _PROBES]
        return ids[: len(ids) - len(_common(ends))]
    return ids


def _rendered(tokenizer: Tokenizer, messages: Sequence[Message], answer: bool = False) -> list[int]:
    return [i for ids in tokenize_segments(tokenizer, messages, "token", answer) for i in ids]


def _admits_two_users(tokenizer: Tokenizer) -> bool:
    try:
        _rendered(tokenizer, [_user("a"), _user("a")])
    except InputError:
        return False
    return True


def _common(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the longest beginning that all rows have in common."""
    common: list[int] = []
    for ids in zip(*rows, strict=False):
        if len(set(ids)) > 1:
            break
        common.append(ids[0])
    return common
