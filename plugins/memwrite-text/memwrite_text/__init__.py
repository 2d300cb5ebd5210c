"""memwrite-text: what is used instead of a memory, the context itself or a part of it, as baselines."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_text.kind import TEXT
from memwrite_text.reader import TextReader
from memwrite_text.retrieval import retrieve
from memwrite_text.writer import LastTokensConfig, NoParams, TextWriter

__all__ = ["LAST_TOKENS", "READER", "TEXT", "WHOLE_TEXT", "retrieve"]

LAST_TOKENS = WriterPlugin(
    api=2,
    name="last-tokens",
    summary="baseline: the last tokens as they are; does not remove the context",
    config=LastTokensConfig,
    build=lambda config, backbone: TextWriter(backbone, config.tokens),
    emits=TEXT.name,
    slots="tokens",
    capabilities=Capabilities(streaming=True, chunk_exact=True),
)
WHOLE_TEXT = WriterPlugin(
    api=2,
    name="whole-text",
    summary="baseline: the whole text as it is; does not remove the context",
    config=NoParams,
    build=lambda config, backbone: TextWriter(backbone, None),
    emits=TEXT.name,
    capabilities=Capabilities(streaming=True, chunk_exact=True),
)
READER = ReaderPlugin(
    api=2,
    name="text",
    summary="baseline: the kept text stands before the query",
    config=NoParams,
    build=TextReader,
    accepts=TextReader.accepts,
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kind of state that is text."""
    return [TEXT]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writers that keep text."""
    return [LAST_TOKENS, WHOLE_TEXT]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare the reader of text."""
    return [READER]
