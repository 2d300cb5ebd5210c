"""Headers of state files: one module for each format version; all but the newest migrate to the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import memwrite
from memwrite.checkpoints.formats import v1, v2
from memwrite.checkpoints.formats.v2 import FORMAT, REQUIRES, Header, StoredSpec
from memwrite.errors import ConfigError, ContractViolation, StorageError

__all__ = [
    "FORMAT",
    "REQUIRES",
    "Header",
    "StoredSpec",
    "check_version",
    "read_header",
    "reading_header",
]

#: Format version -> the function that turns a header of that version into one of the next version.
_UPGRADES: dict[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: v1.upgrade}


def read_header(data: Mapping[str, Any], where: str) -> Header:
    """Return the header in plain, untrusted data of any format up to `FORMAT`.

    Args:
        data: a JSON object.
        where: where it comes from, for messages.

    Raises:
        StorageError: the data are no valid header, or need a newer memwrite.
    """
    version = min(check_version(data, FORMAT, where), FORMAT)
    with reading_header(where):
        if "${" in json.dumps(data):
            raise ConfigError("it holds an interpolation, and a header must be data only")
        while version < FORMAT:
            data = _UPGRADES[version](data)
            version += 1
        return v2.read(data, where)


@contextmanager
def reading_header(where: str) -> Iterator[None]:
    """Turn the errors that an untrusted header raises within this block into a `StorageError`.

    Raises:
        StorageError: the header has unknown keys or impossible values.
    """
    try:
        yield
    except (ConfigError, ContractViolation, RecursionError) as error:
        raise StorageError(f"'{where}' has a header that does not fit: {error}") from None


def check_version(data: Mapping[str, Any], newest: int, where: str) -> int:
    """Return the format version of `data`, which may be newer than `newest` if it is still readable.

    `requires` is the oldest version whose readers understand the data: a version that only adds optional fields does not
    change it. Data without `requires` require their own version.

    Args:
        data: a JSON object with `format` and perhaps `requires`.
        newest: the newest version that this library reads.
        where: where the data come from, for messages.

    Raises:
        StorageError: the version is not a positive whole number, or the data require a newer one.
    """
    version = data.get("format")
    requires = data.get("requires", version)
    if any(type(number) is not int or number < 1 for number in (version, requires)):
        raise StorageError(f"'{where}' is of format {version!r}, which is no format of memwrite")
    if requires > newest:
        raise StorageError(
            f"'{where}' is of format {version}, but memwrite {memwrite.__version__} reads formats up to {newest}: "
            f"install a newer memwrite"
        )
    return int(str(version))
