"""memwrite-pool: a pool of hidden states for each layer, of which each write forgets some at random (MemoryLLM)."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_pool.config import PoolConfig, PoolReaderConfig
from memwrite_pool.pool import POOL
from memwrite_pool.reader import PoolReader
from memwrite_pool.writer import PoolWriter

__all__ = [
    "READER",
    "WRITER",
    "PoolConfig",
    "PoolReader",
    "PoolReaderConfig",
    "PoolWriter",
    "memwrite_kinds",
    "memwrite_readers",
    "memwrite_writers",
]

WRITER = WriterPlugin(
    api=2,
    name="pool",
    summary="what each layer gives at the last tokens, in a pool that forgets as much at random (MemoryLLM)",
    config=PoolConfig,
    build=PoolWriter,
    emits=POOL.name,
    capabilities=Capabilities(streaming=True, differentiable=True),
    slots="slots",
)
READER = ReaderPlugin(
    api=2,
    name="pool",
    summary="every layer sees its own memory tokens before the text (MemoryLLM, M+)",
    config=PoolReaderConfig,
    build=PoolReader,
    accepts=PoolReader.accepts,
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kind of state of a pool."""
    return [POOL]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the pool's writer."""
    return [WRITER]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare the pool's reader."""
    return [READER]
