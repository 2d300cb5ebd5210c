"""A configuration becomes a backbone, a writer and a reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import Config, load_config, part_config
from memwrite.errors import ConfigError
from memwrite.plugins import WriterPlugin
from memwrite.plugins.pairs import check_pair
from memwrite.plugins.registry import registry
from memwrite.protocols import Reader, Writer
from memwrite.state import KINDS
from memwrite.utils.rng import seeded


class WriterModule(nn.Module, Writer):
    """What every writer is: an nn.Module with the methods of `Writer`. It need not inherit from this class."""


class ReaderModule(nn.Module, Reader):
    """What every reader is: an nn.Module with the methods of `Reader`. It need not inherit from this class."""


class Components(NamedTuple):
    """What a `Memory` is made of; `writer` is None for a memory that only reads."""

    backbone: TransformersBackbone
    writer: WriterModule | None
    reader: ReaderModule
    config: Config


def from_config(config: Config, backbone: TransformersBackbone | None = None) -> Components:
    """Build what `config` describes, around `backbone` where one is given.

    Raises:
        ConfigError, PluginError, IncompatiblePair: it cannot be built.
    """
    plugins = registry()
    writers, readers = plugins.writer(config.writer.name), plugins.reader(config.reader.name)
    check_pair(writers.name, writers.emits, readers.name, readers.accepts)
    writer_config = part_config(writers.config, config.writer.params, "writer.params")
    reader_config = part_config(readers.config, config.reader.params, "reader.params")
    backbone = backbone or load_backbone(config.backbone, config.seed)
    _check_attention(writers, backbone)
    with seeded(config.seed):
        writer = writers.build(writer_config, backbone)
        reader = readers.build(reader_config, backbone, writer.spec)
    return Components(backbone, cast(WriterModule, writer), cast(ReaderModule, reader), config)


def from_source(
    source: str | Path | Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    backbone: TransformersBackbone | None = None,
) -> Components:
    """Build what a YAML file, a mapping or a `Config` describes; see `Memory.from_config`.

    Raises:
        ConfigError, PluginError, IncompatiblePair: it cannot be built.
    """
    if backbone is not None and isinstance(source, Mapping):
        source = {"backbone": backbone.described, **source}
    config = source if isinstance(source, Config) else load_config(source, overrides)
    return from_config(config, backbone)


def _check_attention(writer: WriterPlugin, backbone: TransformersBackbone) -> None:
    """Refuse states that only attention layers could be given, where a model has none.

    Raises:
        ConfigError: the writer emits such states.
    """
    kind = KINDS.get(writer.emits)
    named = writer.emits in ("keyvalue", "lowrank") or (
        kind is not None and kind.recall is not None
    )
    if named and not backbone.info.layers:
        raise ConfigError(
            f"writer '{writer.name}' makes '{writer.emits}' states, which attention layers read, but all layers of "
            f"'{backbone.info.architecture}' are recurrent: take a writer of another kind of state"
        )
