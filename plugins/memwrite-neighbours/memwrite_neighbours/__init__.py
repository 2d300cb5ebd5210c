"""memwrite-neighbours: keys and values of the whole context, of which each query looks up the nearest few."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_neighbours.config import ExtendedMindConfig, MemorizingConfig, NeighboursConfig
from memwrite_neighbours.kind import NEIGHBOURS
from memwrite_neighbours.reader import ExtendedMindReader, MemorizingReader
from memwrite_neighbours.writer import NeighboursWriter

__all__ = [
    "EXTENDED_MIND",
    "MEMORIZING",
    "WRITER",
    "ExtendedMindConfig",
    "ExtendedMindReader",
    "MemorizingConfig",
    "MemorizingReader",
    "NeighboursConfig",
    "NeighboursWriter",
    "memwrite_kinds",
    "memwrite_readers",
    "memwrite_writers",
]

WRITER = WriterPlugin(
    api=2,
    name="neighbours",
    summary="keys and values of every token, without their positions; the state grows with the context",
    config=NeighboursConfig,
    build=NeighboursWriter,
    emits=NEIGHBOURS.name,
    capabilities=Capabilities(streaming=True, chunk_exact=True),
)
EXTENDED_MIND = ReaderPlugin(
    api=2,
    name="extended-mind",
    summary="each query attends to the slots whose keys are most like it (Extended Mind)",
    config=ExtendedMindConfig,
    build=ExtendedMindReader,
    accepts=ExtendedMindReader.accepts,
)
MEMORIZING = ReaderPlugin(
    api=2,
    name="memorizing",
    summary="each query attends to its nearest slots by learned multiples of cosines (Memorizing Transformers)",
    config=MemorizingConfig,
    build=MemorizingReader,
    accepts=MemorizingReader.accepts,
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kind of state of neighbours."""
    return [NEIGHBOURS]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writer that keeps all keys and values."""
    return [WRITER]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare the readers that look up the nearest."""
    return [EXTENDED_MIND, MEMORIZING]
