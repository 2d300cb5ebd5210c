"""Where documents are read from: JSONL and parquet, in one file or many, wherever fsspec reaches; datasets.

Files are read in the order of their names and a part at a time.
"""

from __future__ import annotations

import json
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memwrite.errors import InputError
from memwrite.utils.extras import extra

with extra("stores"):
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.utils import infer_compression

#: Stands before the name of a dataset on the Hugging Face hub.
HUB = "hub:"
#: A folder with one of these is a saved dataset, or several as splits.
_DATASET_FILES = "state.json", "dataset_dict.json"
#: Rows of a table that are in memory at a time.
_ROWS = 1024


@dataclass(frozen=True)
class Source(ABC):
    """One file of documents, or one split of a dataset.

    Attributes:
        name: that messages call it by.
        prefix: what the keys of its rows without an id begin with.
    """

    name: str
    prefix: str

    @abstractmethod
    def count(self) -> int | None:
        """Return the number of rows; None where only reading it all would tell, or it can be read only once."""

    @abstractmethod
    def rows(self, fields: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Yield the number of every row that is not blank, from 1, and what it is: data, or the error why it is none.

        Args:
            fields: the first one is that of the text; those of a table that are not among them are not read.

        Raises:
            InputError: it cannot be read, or is a table without the text.
        """


@dataclass(frozen=True)
class JsonLines(Source):
    """A file with a JSON value a line, maybe compressed; or a stream, without a `system`."""

    path: str
    system: Any = None

    def count(self) -> int | None:
        """Return the number of lines of a plain file on this machine."""
        if not isinstance(self.system, LocalFileSystem) or infer_compression(self.path):
            return None
        with _reading(self.name), open(self.path, "rb") as file:
            return sum(1 for _ in file)

    def rows(self, fields: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Yield what the lines say; see `Source.rows`."""
        with _reading(self.name), self._opened() as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parsed(line)

    def _opened(self) -> Any:
        if self.system is None:
            return open(self.path, "rb")
        return self.system.open(self.path, "rb", compression="infer")


@dataclass(frozen=True)
class Parquet(Source):
    """A parquet file."""

    path: str
    system: Any

    def count(self) -> int | None:
        """Return the number of rows, from the end of the file."""
        with self._opened() as file:
            return int(file.metadata.num_rows)

    def rows(self, fields: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Yield the rows, of which a batch is in memory; see `Source.rows`."""
        with self._opened() as file:
            columns = _columns(self.name, file.schema_arrow.names, fields)
            number = 0
            for batch in file.iter_batches(_ROWS, columns=columns):
                for row in range(batch.num_rows):
                    number += 1
                    yield number, _row(batch, row)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        from pyarrow.parquet import ParquetFile

        with _reading(self.name), self.system.open(self.path, "rb") as data:
            yield ParquetFile(data)


@dataclass(frozen=True)
class Split(Source):
    """A dataset of the package `datasets`, which has its rows on this machine's disk."""

    data: Any

    def count(self) -> int | None:
        """Return the number of rows."""
        return len(self.data)

    def rows(self, fields: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Yield the rows; see `Source.rows`."""
        columns = _columns(self.name, self.data.column_names, fields)
        with _reading(self.name):
            yield from enumerate(self.data.with_format(None).select_columns(columns), 1)


def find_sources(place: str | Path) -> Sequence[Source]:
    """Return what `place` names, sorted by name.

    Args:
        place: a file or a stream; a pattern of files, as in "folder/*.parquet"; either as a URL that fsspec knows, as in
            "s3://bucket/*.jsonl"; the folder of a saved dataset; or "hub:NAME" or "hub:NAME:SPLIT" of a dataset on the hub.

    Raises:
        InputError: there is nothing, or it cannot be read.
        MissingExtra: the package is missing that reads it.
    """
    place = os.fspath(place)
    if place.startswith(HUB):
        return _hub(place)
    if "://" not in place:
        if any(os.path.isfile(os.path.join(place, name)) for name in _DATASET_FILES):
            return _saved(place)
        if os.path.exists(place) or not _has_pattern(place):
            return [_local(place)]
    with _reading(place):
        system, path = url_to_fs(place)
        if not _has_pattern(path):
            return [_file(place, "", path, system)]
        found = system.glob(path, detail=True)
    paths = sorted(name for name, info in found.items() if info["type"] == "file")
    if not paths:
        raise InputError(f"'{place}' matches no file")
    # Keys do not change when a file is added, nor with the folder in which all of them lie.
    fixed = re.split(r"[*?[]", path)[0].rpartition("/")[0] + "/"
    local = isinstance(system, LocalFileSystem)
    return [
        _file(
            path if local else system.unstrip_protocol(path),
            f"{path.removeprefix(fixed)}:",
            path,
            system,
        )
        for path in paths
    ]


def is_stream(source: Source) -> bool:
    """Return whether it is a pipe or another stream, which can be read only once."""
    return isinstance(source, JsonLines) and source.system is None


def _has_pattern(path: str) -> bool:
    web = path.startswith(("http://", "https://"))  # where a question mark begins a query
    return any(sign in path for sign in ("*" if web else "*?["))


def _file(name: str, prefix: str, path: str, system: Any) -> Source:
    if not re.search(r"\.parquet(\?|$)", path.lower()):
        return JsonLines(name, prefix, path, system)
    with extra("parquet"):
        import pyarrow.parquet  # noqa: F401  # missed before anything is begun
    return Parquet(name, prefix, path, system)


def _local(place: str) -> Source:
    """Return a file of this machine, or a stream."""
    try:
        mode = os.stat(place).st_mode
    except OSError as error:
        raise InputError(f"'{place}' cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise InputError(
            f"'{place}' cannot be read: it is a folder, but not of a saved dataset; name its files, as in '{place}/*.jsonl'"
        )
    if not os.access(place, os.R_OK):
        raise InputError(f"'{place}' cannot be read: permission denied")
    if not stat.S_ISREG(mode):
        return JsonLines(place, "", place)
    return _file(place, "", place, LocalFileSystem())


def _saved(place: str) -> Sequence[Source]:
    with extra("datasets"):
        from datasets import load_from_disk
    with _reading(place):
        return _splits(place, load_from_disk(place))


def _hub(place: str) -> Sequence[Source]:
    with extra("datasets"):
        from datasets import load_dataset
    name, _, split = place.removeprefix(HUB).partition(":")
    with _reading(place):
        return _splits(place, load_dataset(name, split=split or None))


def _splits(place: str, data: Any) -> Sequence[Source]:
    if isinstance(data, Mapping):
        return [Split(f"{place}:{name}", f"{name}:", data[name]) for name in sorted(data)]
    return [Split(place, "", data)]


def _columns(name: str, there: Sequence[str], fields: Sequence[str]) -> list[str]:
    if fields[0] not in there:
        raise InputError(
            f"'{name}' has no column '{fields[0]}', but {', '.join(sorted(there)) or 'none'}: name the text's with "
            f"--text-field"
        )
    return [field for field in fields if field in there]


def _row(batch: Any, row: int) -> Any:
    try:
        return {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        return InputError(f"not UTF-8 text (byte {error.start})")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return InputError(f"not UTF-8 text (byte {error.start})")
    except json.JSONDecodeError as error:
        return InputError(f"not JSON: {error.msg} at character {error.pos}")
    except (RecursionError, ValueError) as error:
        return InputError(str(error))


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except Exception as error:  # every file system and format raises its own
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise InputError(f"'{name}' cannot be read: {' '.join(str(reason).split())}") from None
