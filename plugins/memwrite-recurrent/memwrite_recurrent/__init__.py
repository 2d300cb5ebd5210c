"""The state that a hybrid model keeps by itself, as a memory."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_recurrent.config import NativeStateConfig, NoParams
from memwrite_recurrent.kind import RECURRENT
from memwrite_recurrent.reader import RecurrentReader
from memwrite_recurrent.writer import NativeStateWriter

WRITER = WriterPlugin(
    api=2,
    name="native-state",
    summary="what a hybrid model's recurrent layers hold of the context, beside its keys and values",
    config=NativeStateConfig,
    build=NativeStateWriter,
    emits="recurrent",
    slots="slots",
    capabilities=Capabilities(streaming=True, chunk_exact=True),
)
READER = ReaderPlugin(
    api=2,
    name="recurrent",
    summary="goes on from the states of a hybrid model's layers",
    config=NoParams,
    build=RecurrentReader,
    accepts=frozenset({"recurrent"}),
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """The states of recurrent layers."""
    return [RECURRENT]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """The writer of native states."""
    return [WRITER]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """The reader of native states."""
    return [READER]
