"""What is held to the laws: a writer and a reader around a small backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig, Config, PartConfig, part_config
from memwrite.memory import Memory
from memwrite.plugins import ReaderPlugin, WriterPlugin
from memwrite.plugins.registry import check_pair
from memwrite_specs.backbones import BACKBONES, Build

SHAKE = 0.05


@dataclass(frozen=True)
class Pair:
    """A writer and a reader that fit.

    Attributes:
        writer: the plugin's declaration.
        reader: likewise.
        params: of the writer, as in a config.
        reader_params: of the reader.
        backbone: a name of `BACKBONES`.

    Raises:
        IncompatiblePair: the reader does not accept what the writer emits.
    """

    writer: WriterPlugin
    reader: ReaderPlugin
    params: Mapping[str, Any] = field(default_factory=dict)
    reader_params: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "tiny"

    def __post_init__(self) -> None:
        check_pair(self.writer.name, self.writer.emits, self.reader.name, self.reader.accepts)

    def __str__(self) -> str:
        return f"{self.writer.name} + {self.reader.name} on {self.backbone}"

    @property
    def build(self) -> Build:
        """What the backbone is made of."""
        return BACKBONES[self.backbone]

    def language_model(self, dtype: str = "float64") -> TransformersBackbone:
        """The backbone, made anew; the same weights every time."""
        return load_backbone(self._backbone(dtype))

    def memory(self, dtype: str = "float64", seed: int = 0) -> Memory:
        """A new memory of this pair, in evaluation mode.

        A law holds for all weights, not only for the zeros that mechanisms like to start from: every parameter of
        writer and reader is shaken.

        Args:
            dtype: of the backbone.
            seed: of the weights of writer and reader.
        """
        config = self._backbone(dtype)
        backbone = load_backbone(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            writer = self.writer.build(
                part_config(self.writer.config, dict(self.params), "writer.params"), backbone
            )
            reader = self.reader.build(
                part_config(self.reader.config, dict(self.reader_params), "reader.params"),
                backbone,
                writer.spec,
            )
            for part in (writer, reader):
                _shake(part)
        names = (
            PartConfig(self.writer.name, dict(self.params)),
            PartConfig(self.reader.name, dict(self.reader_params)),
        )
        return Memory(backbone, writer, reader, Config(config, *names)).eval()

    def _backbone(self, dtype: str) -> BackboneConfig:
        return BackboneConfig(
            type=self.build.type, params=dict(self.build.params), dtype=dtype, attention="eager"
        )


@torch.no_grad()
def _shake(part: object) -> None:
    if isinstance(part, nn.Module):
        for weight in part.parameters():
            if weight.is_floating_point():
                weight.add_(torch.randn_like(weight), alpha=SHAKE)
