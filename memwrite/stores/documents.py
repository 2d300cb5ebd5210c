"""Documents, one JSON object a line. An invalid line is skipped with a reason, and the work goes on."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memwrite.errors import InputError
from memwrite.stores.record import check_key
from memwrite.stores.store import text_digest


@dataclass(frozen=True)
class Document:
    """A text to write.

    Attributes:
        line: number of its line, from 1.
        key: its key in the store.
        text: what is written.
    """

    line: int
    key: str
    text: str

    @property
    def digest(self) -> str:
        """Return the sha256 of the text, as hex digits."""
        return text_digest(self.text)


@dataclass(frozen=True)
class Skipped:
    """A line that is not written, and why."""

    line: int
    reason: str


def is_stream(path: Path) -> bool:
    """Return whether `path` is a pipe or another stream, which can be read only once.

    Raises:
        InputError: `path` is missing, is a folder, or may not be read.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(mode) or not os.access(path, os.R_OK):
        reason = "it is a folder" if stat.S_ISDIR(mode) else "permission denied"
        raise InputError(f"'{path}' cannot be read: {reason}")
    return not stat.S_ISREG(mode)


def check_shared(path: Path, processes: int) -> None:
    """Check that so many processes can read `path`.

    Raises:
        InputError: it cannot be read, or is a stream that more than one process would read.
    """
    if is_stream(path) and processes > 1:
        raise InputError(
            f"'{path}' is a stream, which {processes} processes cannot share: save it as a file first"
        )


def count_lines(path: Path) -> int | None:
    """Return the number of lines of a file; None for a stream, which is not touched.

    Raises:
        InputError: it cannot be read.
    """
    if is_stream(path):
        return None
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from None


def read_documents(path: Path) -> Iterator[Document | Skipped]:
    """Yield every line of a JSONL file or stream that is not blank; it is opened and read once.

    A line is {"id": "...", "text": "..."}; without an id its number is the key.

    Raises:
        InputError: the file cannot be read.
    """
    lines: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _document(number, line, lines)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from None


def _document(number: int, line: bytes, lines: dict[str, int]) -> Document | Skipped:
    try:
        key, text = _fields(number, json.loads(line.decode("utf-8-sig")))
        first = lines.setdefault(key, number)
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
