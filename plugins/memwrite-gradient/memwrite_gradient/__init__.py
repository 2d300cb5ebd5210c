"""memwrite-gradient: memories by gradient descent: GradMem (arXiv 2603.13875), and cartridges and soft prompts on a
frozen model (arXiv 2506.06266).
"""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import Capabilities, ImporterPlugin, WriterPlugin, hookimpl
from memwrite_gradient import gradmem as official
from memwrite_gradient.config import GradientConfig
from memwrite_gradient.frozen.config import CartridgeConfig, DescentConfig, SoftPromptConfig
from memwrite_gradient.frozen.writer import CartridgeWriter, SoftPromptWriter
from memwrite_gradient.reports import recited, worth
from memwrite_gradient.writer import GradientWriter

__all__ = [
    "CARTRIDGE",
    "GRADIENT",
    "SOFT_PROMPT",
    "CartridgeConfig",
    "CartridgeWriter",
    "GradientConfig",
    "GradientWriter",
    "SoftPromptConfig",
    "SoftPromptWriter",
    "memwrite_importers",
    "memwrite_writers",
]


#: What a memory that was descended on its context's reconstruction is good for, unless the writer was meta-trained.
RECITED = "its states can be recited, not questioned"


def _worth(config: DescentConfig) -> str:
    return RECITED if config.objective == "reconstruction" else ""


GRADIENT = WriterPlugin(
    api=2,
    name="gradient",
    summary="K gradient steps on the context's reconstruction loss, into M prefix vectors",
    config=GradientConfig,
    build=GradientWriter,
    emits="prefix",
    capabilities=Capabilities(differentiable=True),
    steps="steps",
    max_steps="most_steps",
    slots="slots",
    untrained=lambda config: RECITED,
    report=recited,
)

CARTRIDGE = WriterPlugin(
    api=2,
    name="cartridge",
    summary="keys and values descended until the model with them predicts like the model with the context",
    config=CartridgeConfig,
    build=CartridgeWriter,
    emits="keyvalue",
    steps="steps",
    slots="slots",
    untrained=_worth,
    report=worth,
)

SOFT_PROMPT = WriterPlugin(
    api=2,
    name="soft-prompt",
    summary="prefix vectors descended until the model with them predicts like the model with the context",
    config=SoftPromptConfig,
    build=SoftPromptWriter,
    emits="prefix",
    steps="steps",
    slots="slots",
    untrained=_worth,
    report=worth,
)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the gradient writer, and those for a frozen model."""
    return [GRADIENT, CARTRIDGE, SOFT_PROMPT]


@hookimpl
def memwrite_importers() -> Sequence[ImporterPlugin]:
    """Declare the importer of the authors' own checkpoints."""
    return [
        ImporterPlugin(
            api=2,
            name="gradmem",
            summary="checkpoints of GradMem's own scripts",
            load=official.load,
        )
    ]
