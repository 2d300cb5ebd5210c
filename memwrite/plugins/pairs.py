"""Which readers read which kinds of state."""

from __future__ import annotations

from collections.abc import Set

from memwrite.errors import IncompatiblePair
from memwrite.state import KINDS

#: In a reader's `accepts`: every kind of state that has a recall.
RECALL = "recall"


def reads_kind(accepts: Set[str], kind: str) -> bool:
    """Return whether a reader with this `accepts` reads states of this kind."""
    declared = KINDS.get(kind)
    recalls = declared is not None and declared.recall is not None
    return kind in accepts or (RECALL in accepts and recalls)


def kinds_read(accepts: Set[str]) -> list[str]:
    """Return the kinds that a reader with this `accepts` reads: the declared ones, and those that it names itself."""
    return sorted({kind for kind in KINDS if reads_kind(accepts, kind)} | (accepts - {RECALL}))


def check_pair(writer: str, kind: str, reader: str, accepts: Set[str]) -> None:
    """Refuse a reader that does not read what the writer emits.

    Raises:
        IncompatiblePair: it does not.
    """
    if not reads_kind(accepts, kind):
        raise IncompatiblePair(
            f"reader '{reader}' reads {' or '.join(kinds_read(accepts))} states, but writer '{writer}' emits "
            f"'{kind}' states: see the pairs in `memwrite plugins`"
        )
