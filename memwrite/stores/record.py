"""A memory as a store keeps it: its tensors and where they came from, with a checksum; never the text.

What many memories have in common, their provenance, is kept once: the header of a state file and the reader's weights.
On disk it is called the recipe.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from torch import Tensor

from memwrite.checkpoints import container
from memwrite.checkpoints.formats import Header, check_version, read_header
from memwrite.checkpoints.identity import Identity
from memwrite.checkpoints.state_file import StateFile, header_text
from memwrite.errors import ContractViolation, InputError, StorageError
from memwrite.state import MemoryState

FORMAT = 1
LONGEST_KEY = 200
#: The names that a record's header and a database's columns have for the fields of an entry.
_FIELDS = {"format", "requires", "key", "recipe", "created", "expires", "source"}


@dataclass(frozen=True)
class Entry:
    """What a store says of one memory.

    Attributes:
        key: of the user, the document, ...
        provenance: 64 hex digits that name its writer, its reader and its backbone.
        created: when it was written.
        expires: from when on it is gone; None for never.
        text_digest: sha256 of the text that was written, as hex digits; None where the text was not given. Whoever has
            the text can tell that it was this one.
        nbytes: how many bytes it takes up.
    """

    key: str
    provenance: str
    created: datetime
    expires: datetime | None
    text_digest: str | None
    nbytes: int = 0

    def expired(self, now: datetime) -> bool:
        """Return whether the memory has expired by `now`."""
        return self.expires is not None and self.expires <= now

    def left(self, now: datetime) -> timedelta | None:
        """Return how long it lives from `now` on; None for good."""
        return None if self.expires is None else self.expires - now


@dataclass(frozen=True)
class Provenance:
    """What all memories have in common that one writer made for one reader; stores keep it once.

    Attributes:
        digest: 64 hex digits that name it.
        header: of a state file, but for its time.
        weights: of the reader.
    """

    digest: str
    header: Header
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, file: StateFile) -> Provenance:
        """Return the provenance of a state file; its name is that of the file's `Identity`."""
        digest = Identity.of(file.header, file.weights).digest
        return cls(digest, replace(file.header, created=""), file.weights)

    @property
    def identity(self) -> Identity:
        """Return what the memories were written by and for."""
        return Identity.of(self.header, self.weights)

    def pack(self, where: str) -> bytes:
        """Return it as bytes; the inverse of `unpack`."""
        return container.pack(header_text(self.header, digest=self.digest), self.weights, where)

    @classmethod
    def unpack(cls, digest: str, data: bytes, where: str) -> Provenance:
        """Return the provenance in `data`, which is kept under the name `digest`.

        Raises:
            StorageError: it is damaged, or another one.
        """
        header, weights = container.unpack(data, where)
        # Format 1 named it by a digest of the header's text, which is not taken again: the checksum is right.
        if header.pop("digest", digest) != digest:
            raise StorageError(f"'{where}' is damaged: it is another provenance than its name says")
        return cls(digest, read_header(header, where), weights)


def check_key(key: str) -> str:
    """Return `key`, if it can be a key.

    Raises:
        InputError: it cannot be one.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InputError(f"the key {key!r} is not valid Unicode") from None
    if not 0 < size <= LONGEST_KEY:
        raise InputError(f"a key has 1 to {LONGEST_KEY} bytes, but '{key[:40]}' has {size}")
    if not key.isprintable():
        raise InputError(f"the key {key!r} has characters that cannot be printed")
    return key


def pack(entry: Entry, state: MemoryState, where: str) -> bytes:
    """Return one row of memory as bytes; the inverse of `unpack`."""
    header = {
        "format": FORMAT,
        "key": entry.key,
        "recipe": entry.provenance,
        "created": stamp(entry.created),
        "expires": None if entry.expires is None else stamp(entry.expires),
        "source": entry.text_digest,
    }
    return container.pack(json.dumps(header, sort_keys=True), state.tensors, where)


def unpack(data: bytes, where: str) -> tuple[Entry, dict[str, Tensor]]:
    """Return what `data` says of itself, and its tensors.

    Raises:
        StorageError: it is damaged, or needs a newer memwrite.
    """
    header, tensors = container.unpack(data, where)
    if check_version(header, FORMAT, where) > FORMAT and (unknown := header.keys() - _FIELDS):
        warnings.warn(
            f"'{where}' was written by a newer memwrite, and its {', '.join(sorted(unknown))} is ignored: this version "
            f"does not know it",
            stacklevel=2,
        )
    return entry_of(header, len(data), where), tensors


def entry_of(header: Mapping[str, Any], nbytes: int, where: str) -> Entry:
    """Return the entry in untrusted plain data: the header of a record, or a row of the database.

    Raises:
        StorageError: the data are no valid entry.
    """
    try:
        expires, text_digest = header["expires"], header["source"]
        texts = [header["key"], header["recipe"], header["created"]]
        texts += [text for text in (expires, text_digest) if text is not None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a field that should be a text is not one")
        if not re.fullmatch("[0-9a-f]{64}", header["recipe"]):
            raise ValueError(f"'{header['recipe'][:80]}' names no provenance")
        return Entry(
            key=check_key(header["key"]),
            provenance=header["recipe"],
            created=_moment(header["created"]),
            expires=None if expires is None else _moment(expires),
            text_digest=text_digest,
            nbytes=nbytes,
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise StorageError(f"'{where}' is damaged: its header does not fit ({error})") from None


def restore(
    entry: Entry, tensors: Mapping[str, Tensor], provenance: Provenance, where: str
) -> StateFile:
    """Return the state file that consists of a record and its provenance.

    Raises:
        StorageError: the tensors are not those that the provenance describes.
    """
    header = replace(provenance.header, created=stamp(entry.created))
    try:
        return StateFile(header, MemoryState(header.spec.restore(), tensors), provenance.weights)
    except (ContractViolation, ValueError) as error:
        raise StorageError(f"'{where}' is damaged: {error}") from None


def stamp(moment: datetime) -> str:
    """Return UTC time as ISO 8601 in milliseconds; later times sort behind earlier ones."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"'{text}' is in no time zone")
    return moment
