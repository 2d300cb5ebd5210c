"""memwrite-lora: readers that correct projections by low-rank matrices (LoRA; δ-mem, arXiv 2605.12357)."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import ReaderPlugin, hookimpl
from memwrite_lora.config import LoraConfig, PerExampleLoraConfig, StaticLoraConfig
from memwrite_lora.lowrank import PerExampleLoraReader, StaticLoraReader
from memwrite_lora.reader import LoraReader

__all__ = [
    "LORA",
    "PER_EXAMPLE_LORA",
    "STATIC_LORA",
    "LoraConfig",
    "LoraReader",
    "PerExampleLoraConfig",
    "PerExampleLoraReader",
    "StaticLoraConfig",
    "StaticLoraReader",
    "memwrite_readers",
]


LORA = ReaderPlugin(
    api=2,
    name="lora",
    summary="a state's answers to each layer's queries, as low-rank corrections of q, k, v, o",
    config=LoraConfig,
    build=LoraReader,
    accepts=LoraReader.accepts,
)

STATIC_LORA = ReaderPlugin(
    api=2,
    name="static-lora",
    summary="baseline: ordinary LoRA, the same whatever was written",
    config=StaticLoraConfig,
    build=StaticLoraReader,
    accepts=StaticLoraReader.accepts,
)

PER_EXAMPLE_LORA = ReaderPlugin(
    api=2,
    name="per-example-lora",
    summary="each memory its own LoRA matrices",
    config=PerExampleLoraConfig,
    build=PerExampleLoraReader,
    accepts=PerExampleLoraReader.accepts,
)


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare the readers by low-rank corrections."""
    return [LORA, STATIC_LORA, PER_EXAMPLE_LORA]
