"""memwrite-forward: vectors that forward passes leave (RMT, MemoryPrompt, Memformer)."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ImporterPlugin, WriterPlugin, hookimpl
from memwrite_forward import rmt
from memwrite_forward.config import ForwardConfig
from memwrite_forward.memformer import MemformerConfig, MemformerWriter
from memwrite_forward.memory_prompt import MemoryPromptConfig, MemoryPromptWriter
from memwrite_forward.writer import ForwardWriter

__all__ = [
    "FORWARD",
    "MEMFORMER",
    "MEMORY_PROMPT",
    "ForwardConfig",
    "ForwardWriter",
    "MemformerConfig",
    "MemformerWriter",
    "MemoryPromptConfig",
    "MemoryPromptWriter",
    "memwrite_importers",
    "memwrite_writers",
]


FORWARD = WriterPlugin(
    api=2,
    name="forward",
    summary="K forward passes over [M; context; M], into M prefix vectors",
    config=ForwardConfig,
    build=ForwardWriter,
    emits="prefix",
    capabilities=Capabilities(differentiable=True),
    steps="steps",
    slots="slots",
)

MEMORY_PROMPT = WriterPlugin(
    api=2,
    name="memory-prompt",
    summary="an LSTM behind the last token of each segment emits M prefix vectors",
    config=MemoryPromptConfig,
    build=MemoryPromptWriter,
    emits="prefix",
    capabilities=Capabilities(streaming=True, differentiable=True),
    slots="slots",
)

MEMFORMER = WriterPlugin(
    api=2,
    name="memformer",
    summary="M prefix vectors that attend to each segment, each for itself, and forget",
    config=MemformerConfig,
    build=MemformerWriter,
    emits="prefix",
    capabilities=Capabilities(streaming=True, differentiable=True),
    slots="slots",
)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writers."""
    return [FORWARD, MEMORY_PROMPT, MEMFORMER]


@hookimpl
def memwrite_importers() -> Sequence[ImporterPlugin]:
    """Declare the importer of the authors' own checkpoints."""
    return [
        ImporterPlugin(
            api=2,
            name="rmt",
            summary="RMT checkpoints of GradMem's own scripts",
            load=rmt.load,
        )
    ]
