"""The parts of a memory: from a configuration, from a run folder, or from what a state file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from memwrite import runs
from memwrite.backbone import TransformersBackbone
from memwrite.config import Config, load_config, part_config
from memwrite.errors import ConfigError, IncompatiblePair
from memwrite.loading import MODEL_FOLDER, load_backbone
from memwrite.plugins import registry
from memwrite.protocols import Reader, Writer
from memwrite.runs import CONFIG_FILE, WEIGHTS_FILE
from memwrite.seeding import seeded
from memwrite.storage import StateFile


class Parts(NamedTuple):
    """What a `Memory` is made of."""

    backbone: TransformersBackbone
    writer: Writer | None
    reader: Reader
    config: Config


def from_config(
    source: str | Path | Mapping[str, Any] | Config,
    overrides: Sequence[str],
    backbone: TransformersBackbone | None,
) -> tuple[Parts, Path | None]:
    """See `Memory.from_config`; the path is of the weights of writer and reader, where a run folder has them."""
    folder = Path(source) if isinstance(source, (str, Path)) and Path(source).is_dir() else None
    if not isinstance(source, Config):
        config = load_config(folder / CONFIG_FILE if folder else source, overrides)
    else:
        config = source
    if folder and (folder / MODEL_FOLDER).is_dir():
        _check_kept(config, folder)
        trained = replace(config.backbone, path=str(folder), type=None, params={})
        config = replace(config, backbone=trained)
    found = registry()
    writers, readers = found.writer(config.writer.name), found.reader(config.reader.name)
    check_pair(config, writers.emits, readers.accepts)
    writer_config = part_config(writers.config, config.writer.params, "writer.params")
    reader_config = part_config(readers.config, config.reader.params, "reader.params")
    backbone = backbone or load_backbone(config.backbone, config.seed)
    with seeded(config.seed):
        writer = writers.build(writer_config, backbone)
        reader = readers.build(reader_config, backbone, writer.spec)
    weights = folder / WEIGHTS_FILE if folder and (folder / WEIGHTS_FILE).exists() else None
    return Parts(backbone, writer, reader, config), weights


def _check_kept(config: Config, folder: Path) -> None:
    """Raise ConfigError where overrides would have another model than the one in this run folder."""
    own = load_config(folder / CONFIG_FILE).backbone
    for name in ("path", "type", "params", "tokenizer", "ngram"):
        if getattr(config.backbone, name) != getattr(own, name):
            raise ConfigError(
                f"backbone.{name} cannot be changed: '{folder}' holds a model of its own; to go on from its weights, "
                f"train '{folder / CONFIG_FILE}' with training.start={folder}"
            )


def from_state_file(
    file: StateFile, path: str, backbone: str | None, device: str | None, force: bool
) -> Parts:
    """See `Memory.load`; there is no writer."""
    config = runs.config_of(file.header, path)
    runs.check_finite(file.state, path)
    plugin = registry().reader(config.reader.name)
    check_pair(config, file.state.spec.kind, plugin.accepts)
    part = replace(config.backbone, device=device or config.backbone.device, trainable=False)
    if backbone is not None:
        part = replace(part, path=backbone, type=None, params={})
    loaded = runs.load_backbone_of(file.header, part, path, force)
    reader = runs.load_reader_of(file, plugin, loaded, path)
    return Parts(loaded, None, reader, replace(config, backbone=part))


def check_pair(config: Config, kind: str, accepts: frozenset[str]) -> None:
    """Raise IncompatiblePair where the reader does not accept what the writer emits."""
    if kind not in accepts:
        raise IncompatiblePair(
            f"reader '{config.reader.name}' reads {' or '.join(sorted(accepts))} states, but writer "
            f"'{config.writer.name}' emits '{kind}' states: see the pairs in `memwrite plugins`"
        )
