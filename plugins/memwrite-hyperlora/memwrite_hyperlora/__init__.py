"""memwrite-hyperlora: networks that make low-rank weights of a context (Generative Adapter, Doc-to-LoRA)."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import (
    Capabilities,
    ImporterPlugin,
    ReaderPlugin,
    WriterPlugin,
    hookimpl,
)
from memwrite_hyperlora import released_adapter, released_hypernetwork
from memwrite_hyperlora.config import (
    DocToLoraConfig,
    GenerativeAdapterConfig,
    GenerativeAdapterReaderConfig,
)
from memwrite_hyperlora.doc_to_lora import DocToLoraWriter
from memwrite_hyperlora.reader import GenerativeAdapterReader
from memwrite_hyperlora.writer import GenerativeAdapterWriter

__all__ = [
    "DOC_TO_LORA",
    "GENERATIVE_ADAPTER",
    "GENERATIVE_ADAPTER_READER",
    "DocToLoraConfig",
    "DocToLoraWriter",
    "GenerativeAdapterConfig",
    "GenerativeAdapterReader",
    "GenerativeAdapterReaderConfig",
    "GenerativeAdapterWriter",
    "memwrite_importers",
    "memwrite_readers",
    "memwrite_writers",
]

GENERATIVE_ADAPTER = WriterPlugin(
    api=2,
    name="generative-adapter",
    summary="sums of outer products of what each layer receives; texts can be added, merged and taken out again",
    config=GenerativeAdapterConfig,
    build=GenerativeAdapterWriter,
    emits="matrix",
    capabilities=Capabilities(
        streaming=True, differentiable=True, order_free=True, mergeable=True, deletion=True
    ),
)
DOC_TO_LORA = WriterPlugin(
    api=2,
    name="doc-to-lora",
    summary="a hypernetwork makes low-rank weights of each chunk of a text (Doc-to-LoRA)",
    config=DocToLoraConfig,
    build=DocToLoraWriter,
    emits="lowrank",
    capabilities=Capabilities(
        streaming=True, differentiable=True, order_free=True, mergeable=True, deletion=True
    ),
)
GENERATIVE_ADAPTER_READER = ReaderPlugin(
    api=2,
    name="generative-adapter",
    summary="the state's matrices, normalized, as the inner part of low-rank weights",
    config=GenerativeAdapterReaderConfig,
    build=GenerativeAdapterReader,
    accepts=GenerativeAdapterReader.accepts,
)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writers of low-rank weights."""
    return [GENERATIVE_ADAPTER, DOC_TO_LORA]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare Generative Adapter's reader."""
    return [GENERATIVE_ADAPTER_READER]


@hookimpl
def memwrite_importers() -> Sequence[ImporterPlugin]:
    """Declare the importers of the authors' own checkpoints."""
    return [
        ImporterPlugin(
            api=2,
            name="generative-adapter",
            summary="adapters of Generative Adapter's own training",
            load=released_adapter.load,
        ),
        ImporterPlugin(
            api=2,
            name="doc-to-lora",
            summary="hypernetworks of Doc-to-LoRA's own training",
            load=released_hypernetwork.load,
        ),
    ]
