"""memwrite-steering: what sets positive texts apart from negative ones, added to the model."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_steering.cache import SteeredCacheWriter
from memwrite_steering.config import NoParams, SteeredCacheConfig, SteeringReaderConfig
from memwrite_steering.contrast import contrast
from memwrite_steering.residual import STEERING, SteeringReader, SteeringWriter

__all__ = [
    "READER",
    "WRITERS",
    "NoParams",
    "SteeredCacheConfig",
    "SteeredCacheWriter",
    "SteeringReader",
    "SteeringReaderConfig",
    "SteeringWriter",
    "contrast",
    "memwrite_kinds",
    "memwrite_readers",
    "memwrite_writers",
]

_SUMS = Capabilities(streaming=True, differentiable=True, order_free=True, mergeable=True)
WRITERS = [
    WriterPlugin(
        api=2,
        name="steering",
        summary="hidden states behind positive texts, less those behind negative ones",
        config=NoParams,
        build=SteeringWriter,
        emits=STEERING.name,
        capabilities=_SUMS,
    ),
    WriterPlugin(
        api=2,
        name="steered-cache",
        summary="one slot of keys and values, moved from negative to positive texts",
        config=SteeredCacheConfig,
        build=SteeredCacheWriter,
        emits="keyvalue",
        capabilities=_SUMS,
    ),
]
READER = ReaderPlugin(
    api=2,
    name="steering",
    summary="adds a steering vector to the residual stream, always or where a probe says so",
    config=SteeringReaderConfig,
    build=SteeringReader,
    accepts=SteeringReader.accepts,
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kind of state of steering vectors."""
    return [STEERING]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare both writers."""
    return WRITERS


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare the reader of steering vectors."""
    return [READER]
