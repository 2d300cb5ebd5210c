"""A memory as it lies in a store: its tensors and where they came from, sealed; never the text.

What memories of one kind have in common, the recipe, is kept once: header and reader weights of a state file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import safetensors.torch
from torch import Tensor

from memwrite.checkpoints import container
from memwrite.checkpoints.state_file import Header, StateFile, read_header
from memwrite.config import to_dict
from memwrite.errors import ContractViolation, InputError, StorageError
from memwrite.state import MemoryState

FORMAT = 1
LONGEST_KEY = 200


@dataclass(frozen=True)
class Entry:
    """What a store says of one memory.

    Attributes:
        key: of the user, the document, ...
        recipe: 64 hex digits, what names its writer, its reader and its backbone.
        created: when it was written.
        expires: from when on it is gone; None for never.
        source: sha256 of the text that was written, as hex digits, if it was told. Who has the text can tell that
            it was this one.
        nbytes: that it takes up.
    """

    key: str
    recipe: str
    created: datetime
    expires: datetime | None
    source: str | None
    nbytes: int = 0

    def expired(self, now: datetime) -> bool:
        """Whether it is gone."""
        return self.expires is not None and self.expires <= now


@dataclass(frozen=True)
class Provenance:
    """What all memories have in common that one writer made for one reader.

    Attributes:
        digest: 64 hex digits over the rest.
        header: of a state file, but for its time.
        weights: of the reader.
    """

    digest: str
    header: Header
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, file: StateFile) -> Provenance:
        """The provenance of a state file; the same whenever it was made."""
        return cls._of(file.header, file.weights)

    @classmethod
    def _of(cls, header: Header, weights: Mapping[str, Tensor]) -> Provenance:
        header = replace(header, created="")
        text = json.dumps(to_dict(header), sort_keys=True)
        copies = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
        data = text.encode() + safetensors.torch.save(copies)
        return cls(hashlib.sha256(data).hexdigest(), header, weights)

    def pack(self, where: str) -> bytes:
        """The inverse of `unpack`."""
        return container.pack(json.dumps(to_dict(self.header), sort_keys=True), self.weights, where)

    @classmethod
    def unpack(cls, digest: str, data: bytes, where: str) -> Provenance:
        """The recipe in `data`.

        Raises:
            StorageError: it is damaged, or another one.
        """
        header, weights = container.unpack(data, where)
        found = cls._of(read_header(header, where), weights)
        if found.digest != digest:
            raise StorageError(f"'{where}' is damaged: it is another recipe than its name says")
        return found


def check_key(key: str) -> str:
    """`key`, if it can be one.

    Raises:
        InputError: it cannot.
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
    """One row of memory as bytes; the inverse of `unpack`."""
    note = {
        "format": FORMAT,
        "key": entry.key,
        "recipe": entry.recipe,
        "created": stamp(entry.created),
        "expires": None if entry.expires is None else stamp(entry.expires),
        "source": entry.source,
    }
    return container.pack(json.dumps(note, sort_keys=True), state.tensors, where)


def unpack(data: bytes, where: str) -> tuple[Entry, dict[str, Tensor]]:
    """What `data` says of itself, and its tensors.

    Raises:
        StorageError: it is damaged.
    """
    note, tensors = container.unpack(data, where)
    if note.get("format") != FORMAT:
        raise StorageError(
            f"'{where}' holds a record of format {note.get('format')!r}, but this memwrite reads {FORMAT}"
        )
    return entry_of(note, len(data), where), tensors


def entry_of(note: Mapping[str, Any], nbytes: int, where: str) -> Entry:
    """An entry from plain data, which is untrusted.

    Raises:
        StorageError: it makes none.
    """
    try:
        expires, source = note["expires"], note["source"]
        texts = [note["key"], note["recipe"], note["created"]]
        texts += [text for text in (expires, source) if text is not None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text is none")
        if not re.fullmatch("[0-9a-f]{64}", note["recipe"]):
            raise ValueError(f"'{note['recipe'][:80]}' is no recipe")
        return Entry(
            key=check_key(note["key"]),
            recipe=note["recipe"],
            created=_moment(note["created"]),
            expires=None if expires is None else _moment(expires),
            source=source,
            nbytes=nbytes,
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise StorageError(f"'{where}' is damaged: its note does not fit ({error})") from None


def restore(
    entry: Entry, tensors: Mapping[str, Tensor], recipe: Provenance, where: str
) -> StateFile:
    """The state file that a record and its recipe make together.

    Raises:
        StorageError: they do not fit.
    """
    header = replace(recipe.header, created=stamp(entry.created))
    try:
        return StateFile(header, MemoryState(header.spec.restore(), tensors), recipe.weights)
    except (ContractViolation, ValueError) as error:
        raise StorageError(f"'{where}' is damaged: {error}") from None


def stamp(moment: datetime) -> str:
    """UTC time, ISO 8601, in milliseconds; later ones sort behind earlier ones."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"'{text}' is in no time zone")
    return moment
