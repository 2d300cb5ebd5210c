"""Documents, one JSON object a line; lines that are none are told apart, never an end to the work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memwrite.errors import InputError
from memwrite.stores.record import check_key
from memwrite.stores.store import source_digest


@dataclass(frozen=True)
class Document:
    """A text to write.

    Attributes:
        line: where it stands, from 1.
        key: for the store.
        text: what is written.
    """

    line: int
    key: str
    text: str

    @property
    def digest(self) -> str:
        """sha256 of its text."""
        return source_digest(self.text)


@dataclass(frozen=True)
class Skipped:
    """A line that is not written, and why."""

    line: int
    reason: str


def count_lines(path: Path) -> int:
    """Lines of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from None


def read_documents(path: Path) -> Iterator[Document | Skipped]:
    """Every line of a JSONL file that is not blank: {"id": "...", "text": "..."}; without an id, its number is the key.

    Raises:
        InputError: the file cannot be read.
    """
    seen: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _document(number, line, seen)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from None


def _document(number: int, line: bytes, seen: dict[str, int]) -> Document | Skipped:
    try:
        key, text = _fields(number, json.loads(line.decode("utf-8-sig")))
        first = seen.setdefault(key, number)
        if first != number:
            raise InputError(f"'{key}' is the id of line {first} too")
        return Document(number, key, text)
    except UnicodeDecodeError as error:
        return Skipped(number, f"not UTF-8 text (byte {error.start})")
    except json.JSONDecodeError as error:
        return Skipped(number, f"not JSON: {error.msg} at character {error.pos}")
    except (RecursionError, ValueError) as error:  # InputError is one
        return Skipped(number, " ".join(str(error).split()))


def _fields(number: int, data: Any) -> tuple[str, str]:
    if not isinstance(data, dict):
        raise InputError('not an object like {"id": "...", "text": "..."}')
    text, key = data.get("text"), data.get("id", number)
    if not isinstance(text, str):
        raise InputError("'text' is missing or not a string")
    if not text.strip():
        raise InputError("'text' is empty")
    if not isinstance(key, (str, int)) or isinstance(key, bool):
        raise InputError("'id' is neither a string nor a whole number")
    text.encode()  # not every JSON string is valid Unicode
    return check_key(str(key)), text
