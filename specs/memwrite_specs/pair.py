"""What is held to the laws: a writer and a reader around a small backbone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import BackboneConfig, Config, PartConfig, part_config
from memwrite.memory import Memory
from memwrite.plugins import ReaderPlugin, WriterPlugin, registry
from memwrite.plugins.pairs import check_pair
from memwrite.plugins.table import Owner, PluginTable
from memwrite_specs.backbones import BACKBONES, Build

SHAKE = 0.05
P = TypeVar("P", WriterPlugin, ReaderPlugin)


@dataclass(frozen=True)
class Pair:
    """A writer and a reader that fit.

    Attributes:
        writer: the declaration of the writer.
        reader: the declaration of the reader.
        params: the parameters of the writer, as in a config.
        reader_params: the parameters of the reader.
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
        """Return what the backbone is made of."""
        return BACKBONES[self.backbone]

    def language_model(self, dtype: str = "float64") -> TransformersBackbone:
        """Return a backbone of its own; it has the same weights every time."""
        return copy.deepcopy(_built(self.backbone, dtype))

    def config(self, dtype: str = "float64") -> Config:
        """Return the configuration that describes a memory of this pair."""
        writer = PartConfig(self.writer.name, dict(self.params))
        reader = PartConfig(self.reader.name, dict(self.reader_params))
        return Config(_described(self.build, dtype), writer, reader)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the registry of this process find the pair's plugins meanwhile, whatever is installed under their names."""
        with _provided(registry().writers, self.writer), _provided(registry().readers, self.reader):
            yield

    def memory(self, dtype: str = "float64", seed: int = 0) -> Memory:
        """Build a memory of this pair, in evaluation mode.

        A law holds for all weights, not only for the zeros that mechanisms like to start from: every parameter of
        writer and reader is shaken.

        Args:
            dtype: the dtype of the backbone.
            seed: the seed of the weights of writer and reader.
        """
        config = self.config(dtype)
        backbone = self.language_model(dtype)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            # A plugin that keeps something in its parameters must not keep it from one law to the next.
            writer_config, reader_config = copy.deepcopy(self._parts)
            writer = self.writer.build(writer_config, backbone)
            reader = self.reader.build(reader_config, backbone, writer.spec)
            for part in (writer, reader):
                shake(part)
        return Memory(backbone, writer, reader, config).eval()

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """Read the parameters of writer and reader."""
        return (
            part_config(self.writer.config, dict(self.params), "writer.params"),
            part_config(self.reader.config, dict(self.reader_params), "reader.params"),
        )


def _described(build: Build, dtype: str) -> BackboneConfig:
    return BackboneConfig(
        type=build.type, params=dict(build.params), dtype=dtype, attention="eager"
    )


@cache  # to build one takes four times as long as to copy it, and a law wants two
def _built(name: str, dtype: str) -> TransformersBackbone:
    return load_backbone(_described(BACKBONES[name], dtype))


@contextmanager
def _provided(table: PluginTable[P], plugin: P) -> Iterator[None]:
    """Put `plugin` in the place of whatever the table has under its name."""
    before = table.entries.pop(plugin.name, None)
    table.add(plugin, Owner("memwrite-specs", "law", "memwrite_specs"))
    try:
        yield
    finally:
        del table.entries[plugin.name]
        if before is not None:
            table.entries[plugin.name] = before


@torch.no_grad()
def shake(part: object) -> None:
    """Add a little noise to every weight, so that none is one of the zeros that mechanisms start from."""
    if isinstance(part, nn.Module):
        for weight in part.parameters():
            if weight.is_floating_point():
                weight.add_(torch.randn_like(weight), alpha=SHAKE)
