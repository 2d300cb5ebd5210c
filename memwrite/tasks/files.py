"""Files that tasks are read from: every complaint names the file, the place in it and the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from memwrite.errors import ConfigError, InputError
from memwrite.utils.extras import extra

T = TypeVar("T")


@dataclass(frozen=True)
class FilesConfig:
    """Which files a task is read from, and what is kept from training.

    Attributes:
        files: their names.
        folder: what the names are relative to.
        held_out: share of each file, its end, that is kept for evaluation; 1 for all of it, which leaves nothing to
            train on.

    Raises:
        ValueError: a value is out of range.
    """

    files: list[str]
    folder: str = "."
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files must name at least one file")
        if not 0 <= self.held_out <= 1:
            raise ValueError(f"held_out must be from 0 to 1, got {self.held_out}")

    def split(self, read: Callable[[Path], Sequence[T]]) -> tuple[list[list[T]], list[list[T]]]:
        """Split what `read` returns for each file into training and evaluation.

        Of a file with more than one item at least one is held out, where a share is.

        Raises:
            ConfigError, InputError: as `read` does.
        """
        train: list[list[T]] = []
        held_out: list[list[T]] = []
        for name in self.files:
            items = read(Path(self.folder) / name)
            few = 1 if self.held_out and len(items) > 1 else 0
            cut = len(items) - max(round(len(items) * self.held_out), few)
            train.append(list(items[:cut]))
            held_out.append(list(items[cut:]))
        return train, held_out


def evaluation_params(params: Mapping[str, Any], overridden: Collection[str]) -> dict[str, Any]:
    """Hold out all of files that are named for the evaluation, unless a share is named too."""
    if "files" in overridden and "held_out" not in overridden:
        return {**params, "held_out": 1.0}
    return dict(params)


def read_text(path: Path) -> str:
    """Read the text of a UTF-8 file, its lines ending in newlines.

    Raises:
        ConfigError: it cannot be read.
        InputError: it is not UTF-8.
    """
    data = _read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"'{path}', line {line}: not UTF-8 text (byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"task.params.files: '{path}' cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Node:
    """A value in a JSON file.

    Attributes:
        file: where it was read.
        place: where in the file it stands, as in "data[3].paragraphs[1]"; "" for the whole.
        value: plain data.
    """

    file: Path
    place: str
    value: Any

    def fault(self, reason: str) -> InputError:
        """Return the error to raise when this value is not as it should be."""
        where = f"'{self.file}', {self.place}" if self.place else f"'{self.file}'"
        return InputError(f"{where}: {reason}")

    def find(self, name: str) -> Node | None:
        """Return what an object holds by that name, or None.

        Raises:
            InputError: this is no object.
        """
        self._check(dict, "an object")
        if name not in self.value:
            return None
        return Node(self.file, f"{self.place}.{name}".lstrip("."), self.value[name])

    def get(self, name: str) -> Node:
        """Return what an object holds by that name.

        Raises:
            InputError: this is no object, or it holds nothing by that name.
        """
        node = self.find(name)
        if node is None:
            raise self.fault(f"'{name}' is missing")
        return node

    def items(self) -> Iterator[Node]:
        """Yield the values of a list.

        Raises:
            InputError: this is no list.
        """
        self._check(list, "a list")
        for i, value in enumerate(self.value):
            yield Node(self.file, f"{self.place}[{i}]", value)

    def names(self) -> list[str]:
        """Return the names in an object.

        Raises:
            InputError: this is no object.
        """
        self._check(dict, "an object")
        return list(self.value)

    def string(self) -> str:
        """Return a string without the white space around it.

        Raises:
            InputError: this is none, or it is not valid Unicode.
        """
        self._check(str, "a string")
        if any("\ud800" <= character <= "\udfff" for character in self.value):
            raise self.fault("is not valid Unicode")
        return str(self.value).strip()

    def text(self) -> str:
        """Return a non-empty string, see `string`.

        Raises:
            InputError: this is none.
        """
        string = self.string()
        if not string:
            raise self.fault("is empty")
        return string

    def words(self) -> str:
        """Return a non-empty string, or a number as one.

        Raises:
            InputError: this is neither.
        """
        number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        return str(self.value) if number else self.text()

    def boolean(self) -> bool:
        """Return a boolean.

        Raises:
            InputError: this is neither.
        """
        self._check(bool, "true or false")
        return bool(self.value)

    def _check(self, kind: type, name: str) -> None:
        if not isinstance(self.value, kind):
            raise self.fault(f"should be {name}, is {_kind(self.value)}")


def read_json(path: Path) -> Node:
    """Read a whole JSON file.

    Raises:
        ConfigError: it cannot be read.
        InputError: it is not UTF-8 or not JSON.
    """
    try:
        return Node(path, "", json.loads(read_text(path)))
    except json.JSONDecodeError as error:
        raise InputError(
            f"'{path}', line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from None
    except (InputError, ConfigError):
        raise
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
        raise InputError(f"'{path}': cannot be read as JSON: {error}") from None


def read_json_lines(path: Path) -> list[Node]:
    """Read a file with JSON on each line that is not blank.

    Raises:
        ConfigError: it cannot be read.
        InputError: it is not UTF-8, a line is not JSON, or all are blank.
    """
    lines = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                lines.append(Node(path, f"line {number}", json.loads(line)))
            except (RecursionError, ValueError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise InputError(f"'{path}', line {number}: not JSON: {reason}") from None
    if not lines:
        raise InputError(f"'{path}' is empty")
    return lines


def read_records(path: Path, field: str) -> list[Node]:
    """Read the objects of a JSON list, of JSON Lines, or of a parquet file's rows.

    Args:
        path: the file, as its ending has it: .parquet, .jsonl, or else JSON.
        field: one that all of them must have.

    Raises:
        ConfigError: it cannot be read.
        InputError: it is of no such form, or holds nothing.
        MissingExtra: it is parquet, and pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        records = _parquet_rows(path)
    elif path.suffix == ".jsonl":
        records = read_json_lines(path)
    else:
        records = [*read_json(path).items()]
    if not records:
        raise InputError(f"'{path}' is empty")
    for record in records:
        record.get(field)
    return records


def _parquet_rows(path: Path) -> list[Node]:
    with extra("parquet"):
        from pyarrow import ArrowException, BufferReader
        from pyarrow.parquet import read_table
    data = _read_bytes(path)
    try:
        rows = read_table(BufferReader(data)).to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"'{path}' is no parquet file: {error}") from None
    return [Node(path, f"row {number}", row) for number, row in enumerate(rows, 1)]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
