"""Documents out of the rows of files. An invalid row is skipped with a reason, and the work goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memwrite.errors import InputError
from memwrite.stores.record import check_key
from memwrite.stores.sources import Source, find_sources, is_stream
from memwrite.stores.store import text_digest


@dataclass(frozen=True)
class Document:
    """A text to write.

    Attributes:
        file: name of its file.
        line: number of its line or row there, from 1.
        key: its key in the store.
        text: what is written.
    """

    file: str
    line: int
    key: str
    text: str

    @property
    def digest(self) -> str:
        """Return the sha256 of the text, as hex digits."""
        return text_digest(self.text)


@dataclass(frozen=True)
class Skipped:
    """A line or row of a file that is not written, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Documents:
    """The documents of a file, of many, or of a dataset.

    Attributes:
        place: as `find_sources` takes it.
        sources: what it names.
        text_field: the name of what is written, in an object of JSON or among a table's columns.
        id_field: the name of the key.
    """

    place: str
    sources: Sequence[Source]
    text_field: str = "text"
    id_field: str = "id"

    @classmethod
    def of(cls, place: str | Path, text_field: str = "text", id_field: str = "id") -> Documents:
        """Return the documents at `place`.

        Raises:
            InputError: there is nothing, or it cannot be read.
            MissingExtra: the package is missing that reads it.
        """
        return cls(str(place), find_sources(place), text_field, id_field)

    def check_shared(self, processes: int) -> None:
        """Check that so many processes can read them.

        Raises:
            InputError: they come in a stream that more than one process would read.
        """
        if processes > 1 and any(map(is_stream, self.sources)):
            raise InputError(
                f"'{self.place}' is a stream, which {processes} processes cannot share: save it as a file first"
            )

    def count(self) -> int | None:
        """Return the number of rows; None where it cannot be told without reading everything from afar, or twice.

        Raises:
            InputError: a file cannot be read.
        """
        counts = []
        for source in self.sources:
            counts.append(source.count())
            if counts[-1] is None:
                return None
        return sum(count for count in counts if count is not None)

    def read(self) -> Iterator[Document | Skipped]:
        """Yield every row that is not blank, file by file; each file is opened and read once.

        A row is {"id": "...", "text": "..."}. Without an id its number is the key, behind the file's name where there are
        several. Of what was read only the ids stay in memory.

        Raises:
            InputError: a file cannot be read, or a table has no column of texts.
        """
        places: dict[str, tuple[str, int]] = {}
        for source in self.sources:
            for number, data in source.rows([self.text_field, self.id_field]):
                yield self._document(source, number, data, places)

    def _document(
        self, source: Source, number: int, data: Any, places: dict[str, tuple[str, int]]
    ) -> Document | Skipped:
        try:
            key, text = self._fields(source, number, data)
            file, line = places.setdefault(key, (source.name, number))
            if (file, line) != (source.name, number):
                where = "" if file == source.name else f" of '{file}'"
                raise InputError(f"'{key}' is the id of line {line}{where} too")
            return Document(source.name, number, key, text)
        except ValueError as error:  # InputError is one
            return Skipped(source.name, number, " ".join(str(error).split()))

    def _fields(self, source: Source, number: int, data: Any) -> tuple[str, str]:
        if isinstance(data, InputError):
            raise data
        if not isinstance(data, dict):
            raise InputError(f"not an object like {self.example}")
        text = data.get(self.text_field)
        key = data.get(self.id_field, f"{source.prefix}{number}")
        if not isinstance(text, str):
            raise InputError(f"'{self.text_field}' is missing or not a string")
        if not text.strip():
            raise InputError(f"'{self.text_field}' is empty")
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise InputError(f"'{self.id_field}' is neither a string nor a whole number")
        text.encode()  # not every JSON string is valid Unicode
        return check_key(str(key)), text

    @property
    def example(self) -> str:
        """Return a row as it should be."""
        return f'{{"{self.id_field}": "...", "{self.text_field}": "..."}}'
