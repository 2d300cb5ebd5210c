"""All of a store into another one of any kind: records, earlier ones and provenances, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from memwrite.errors import StorageError
from memwrite.stores.record import Provenance
from memwrite.stores.store import Store
from memwrite.utils.progress import counting


@dataclass
class Copied:
    """What became of the memories.

    Attributes:
        copied: how many were copied now.
        already: how many were there, with the same history.
        nbytes: what was copied, earlier states included.
    """

    copied: int = 0
    already: int = 0
    nbytes: int = 0


def copy_store(
    place: str | Path, other: str | Path, prefix: str = "", replace: bool = False
) -> Copied:
    """Copy every memory in `place` whose key begins with `prefix` into `other`, where there may be others already.

    What has expired is left out. Each record is checked by its checksum, and read again once it is copied. A copy that was
    cut off goes on when it is started again.

    Args:
        place: of the store that is read.
        other: of the store that is written; it is made if it is not there.
        prefix: of the keys, an empty one for all.
        replace: whether a memory may take the place of another one under its key, and of its history.

    Raises:
        StorageError: one of the stores cannot be used, a record is damaged, or without `replace` there is something
            else under a key; what came before it is copied.
    """
    done = Copied()
    with Store(place, make=False) as source, Store(other) as target:
        count = source.backend.size(prefix)[0]
        with counting(count, "copy", "key") as bar:
            for entry in source.list(prefix):
                _copy(source, target, entry.key, replace, done)
                bar.update(1)
    return done


def _copy(source: Store, target: Store, key: str, replace: bool, done: Copied) -> None:
    records = source.states(key)
    wanted = [data for _, data in records]
    there = [data for _, data in target.states(key)]
    if wanted == there:
        done.already += 1
        return
    while there and there[:1] == there[1:2]:  # where there are no transactions, a put was cut off
        target.backend.rollback(key, 1, datetime.now(UTC))
        there = there[1:]
    # Oldest first, so what a copy that was cut off has left is the end of the list.
    begun = bool(there) and there == wanted[-len(there) :]
    if there and not begun and not replace:
        raise StorageError(
            f"'{target.name}' holds something else under '{key}': delete it there, or give --replace to put what "
            f"'{source.name}' holds in its place"
        )
    provenances = []
    for digest in sorted({entry.provenance for entry, _ in records}):
        data = source.backend.provenance(digest)
        if data is None:
            raise StorageError(f"'{source.name}' is damaged: it lacks the provenance {digest}")
        Provenance.unpack(digest, data, f"{source.name}: provenance {digest}")
        if target.backend.provenance(digest) is None:
            provenances.append((digest, data))
    missing = records[: -len(there)] if begun else records
    target.backend.put(provenances, [*reversed(missing)], len(records) - 1)
    if [data for _, data in target.states(key)] != wanted:
        raise StorageError(
            f"'{target.name}' does not hold what was copied to '{key}': another process has written it meanwhile, or the "
            f"place is damaged"
        )
    done.copied += 1
    done.nbytes += sum(map(len, wanted))
