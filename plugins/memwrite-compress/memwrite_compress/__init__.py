"""memwrite-compress: learnt compression tokens behind a context (gist, CCM, AutoCompressor, ICAE, 500xCompressor)."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ImporterPlugin, ReaderPlugin, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_compress import released
from memwrite_compress.aggregate import AggregateConfig, AggregateReader
from memwrite_compress.autocompressor import AutoCompressorConfig, AutoCompressorWriter
from memwrite_compress.ccm import (
    CcmConcatConfig,
    CcmConcatWriter,
    CcmMergeConfig,
    CcmMergeWriter,
)
from memwrite_compress.config import CompressionConfig
from memwrite_compress.gist import GistWriter
from memwrite_compress.icae import IcaeConfig, IcaeWriter
from memwrite_compress.kv500x import Compressor500xConfig, Compressor500xWriter
from memwrite_compress.mac import BANK, MacWriter

__all__ = [
    "AGGREGATE",
    "AUTOCOMPRESSOR",
    "CCM_CONCAT",
    "CCM_MERGE",
    "COMPRESSOR_500X",
    "GIST",
    "ICAE",
    "MAC",
    "AggregateConfig",
    "AggregateReader",
    "AutoCompressorConfig",
    "AutoCompressorWriter",
    "CcmConcatConfig",
    "CcmConcatWriter",
    "CcmMergeConfig",
    "CcmMergeWriter",
    "CompressionConfig",
    "Compressor500xConfig",
    "Compressor500xWriter",
    "GistWriter",
    "IcaeConfig",
    "IcaeWriter",
    "MacWriter",
    "memwrite_importers",
    "memwrite_kinds",
    "memwrite_readers",
    "memwrite_writers",
]

GIST = WriterPlugin(
    api=2,
    name="gist",
    summary="key-values of m learnt tokens behind the context",
    config=CompressionConfig,
    build=GistWriter,
    emits="keyvalue",
    capabilities=Capabilities(differentiable=True),
    slots="slots",
)
CCM_CONCAT = WriterPlugin(
    api=2,
    name="ccm-concat",
    summary="key-values of learnt tokens behind each segment, side by side (CCM)",
    config=CcmConcatConfig,
    build=CcmConcatWriter,
    emits="keyvalue",
    capabilities=Capabilities(differentiable=True),
    slots="slots",
)
CCM_MERGE = WriterPlugin(
    api=2,
    name="ccm-merge",
    summary="key-values of learnt tokens behind each segment, their running mean (CCM)",
    config=CcmMergeConfig,
    build=CcmMergeWriter,
    emits="keyvalue",
    capabilities=Capabilities(streaming=True, differentiable=True),
    slots="slots",
)
COMPRESSOR_500X = WriterPlugin(
    api=2,
    name="500x",
    summary="key-values of m tokens behind the context, by a LoRA for the model without it",
    config=Compressor500xConfig,
    build=Compressor500xWriter,
    emits="keyvalue",
    capabilities=Capabilities(differentiable=True),
    slots="slots",
)
AUTOCOMPRESSOR = WriterPlugin(
    api=2,
    name="autocompressor",
    summary="last hidden states of summary tokens behind each segment, side by side",
    config=AutoCompressorConfig,
    build=AutoCompressorWriter,
    emits="prefix",
    capabilities=Capabilities(differentiable=True),
    slots="slots",
)
ICAE = WriterPlugin(
    api=2,
    name="icae",
    summary="last hidden states of tokens behind each segment, by a LoRA for the model without it",
    config=IcaeConfig,
    build=IcaeWriter,
    emits="prefix",
    capabilities=Capabilities(differentiable=True),
    slots="slots",
)
MAC = WriterPlugin(
    api=2,
    name="mac",
    summary="last hidden states of tokens behind each segment, in a bank that grows and has no order (MAC)",
    config=CompressionConfig,
    build=MacWriter,
    emits=BANK.name,
    capabilities=Capabilities(streaming=True, differentiable=True, order_free=True, mergeable=True),
    slots="slots",
)
AGGREGATE = ReaderPlugin(
    api=2,
    name="aggregate",
    summary="what every position finds in a bank of vectors, in whatever order these are (MAC)",
    config=AggregateConfig,
    build=AggregateReader,
    accepts=AggregateReader.accepts,
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kind of banks."""
    return [BANK]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare the reader of banks."""
    return [AGGREGATE]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the compressors."""
    return [GIST, CCM_CONCAT, CCM_MERGE, COMPRESSOR_500X, AUTOCOMPRESSOR, ICAE, MAC]


@hookimpl
def memwrite_importers() -> Sequence[ImporterPlugin]:
    """Declare the importers of the authors' own checkpoints."""
    return [
        ImporterPlugin(
            api=2,
            name="autocompressor",
            summary="AutoCompressor's models",
            load=released.autocompressor,
        ),
        ImporterPlugin(api=2, name="ccm", summary="CCM's adapters", load=released.ccm),
        ImporterPlugin(
            api=2, name="icae", summary="adapters of ICAE's second version", load=released.icae
        ),
    ]
