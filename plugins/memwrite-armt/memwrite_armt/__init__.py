"""memwrite-armt: the associative recurrent memory transformer (arXiv 2407.04841)."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_armt.config import AssociativeConfig, AssociativeReaderConfig
from memwrite_armt.memory import ASSOCIATIVE
from memwrite_armt.reader import AssociativeReader
from memwrite_armt.writer import AssociativeWriter

__all__ = [
    "READER",
    "WRITER",
    "AssociativeConfig",
    "AssociativeReader",
    "AssociativeReaderConfig",
    "AssociativeWriter",
    "memwrite_kinds",
    "memwrite_readers",
    "memwrite_writers",
]

WRITER = WriterPlugin(
    api=2,
    name="associative",
    summary="memory tokens behind each segment, kept in every layer by a delta rule (ARMT)",
    config=AssociativeConfig,
    build=AssociativeWriter,
    emits="associative",
    capabilities=Capabilities(streaming=True),
)
READER = ReaderPlugin(
    api=2,
    name="associative",
    summary="adds to what every layer receives what the memory associates with it (ARMT)",
    config=AssociativeReaderConfig,
    build=AssociativeReader,
    accepts=frozenset({"associative"}),
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kind of state of associative layers."""
    return [ASSOCIATIVE]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare ARMT's writer."""
    return [WRITER]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare ARMT's reader."""
    return [READER]
