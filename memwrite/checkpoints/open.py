"""Opening state files: the backbone, reader and state that an untrusted file describes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from memwrite.backbones.loading import built_weights, load_backbone
from memwrite.backbones.size_limits import MAX_BUILT_WEIGHTS
from memwrite.backbones.sources import is_local
from memwrite.backbones.tokenizers import BUILT_IN
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.build import Components
from memwrite.checkpoints.formats import Header, reading_header
from memwrite.checkpoints.identity import reader_identity, writer_identity
from memwrite.checkpoints.run_folder import shapes_of
from memwrite.checkpoints.state_file import StateFile
from memwrite.config import BackboneConfig, Config, part_config
from memwrite.errors import (
    InputError,
    MemwriteError,
    StorageError,
)
from memwrite.inference.read import check_fits
from memwrite.plugins.declarations import ReaderPlugin
from memwrite.plugins.pairs import check_pair
from memwrite.plugins.registry import registry
from memwrite.state import MemoryState
from memwrite.utils.rng import seeded


def from_state_file(
    file: StateFile, path: str, backbone: str | None, device: str | None, force: bool
) -> tuple[Components, MemoryState]:
    """Build what reads a state file, and return it with the state on its device; see `Memory.load`.

    Raises:
        StorageError: the file cannot be used, or is for another backbone.
        PluginError: its reader is not installed.
    """
    config = config_of(file.header, path)
    _check_finite(file.state, path)
    plugin = registry().reader(config.reader.name)
    check_pair(config.writer.name, file.state.spec.kind, plugin.name, plugin.accepts)
    part = replace(config.backbone, device=device or config.backbone.device, trainable=False)
    if backbone is not None:
        part = replace(part, path=backbone, type=None, params={})
    loaded = _load_backbone(file.header, part, path, force)
    reader = load_reader(file, plugin, loaded, path)
    memory = Components(loaded, None, reader, replace(config, backbone=part))
    return memory, _readable(memory, file.state, path)


def state_for(
    memory: Components, file: StateFile, path: str, writer_fingerprint: str
) -> MemoryState:
    """Return the state in the state file `path`, for a memory that may write on in it.

    Args:
        memory: what is to read the state and, if it has a writer, to write on in it.
        file: the state file.
        path: where it was read from, for messages.
        writer_fingerprint: the digest of the weights of the memory's writer; "" where it has none.

    Raises:
        StorageError: the state is for another backbone, reader or size of state, or another writer wrote it.
    """
    header, config = file.header, memory.config
    if not memory.backbone.has_fingerprint(header.fingerprint):
        raise StorageError(
            f"'{path}' was written for the backbone {header.fingerprint}, but this one is "
            f"{memory.backbone.fingerprint}"
        )
    weights = cast(nn.Module, memory.reader).state_dict()
    same = weights.keys() == file.weights.keys() and all(
        torch.equal(weights[name].cpu(), file.weights[name]) for name in weights
    )
    if not same or not reader_identity(config.reader, "").same(reader_identity(header.reader, "")):
        raise StorageError(
            f"'{path}' was written for another reader than this memory has ('{header.reader.name}' with its own "
            f"parameters and weights): open it with Memory.load"
        )
    if memory.writer is not None:
        writer = writer_identity(config.writer, writer_fingerprint)
        if not writer.same(writer_identity(header.writer, header.writer_fingerprint)):
            raise StorageError(
                f"'{path}' was written by another writer than this memory has ('{header.writer.name}' with its own "
                f"parameters and weights), which cannot write on in it: open it with Memory.load to read it"
            )
        if not memory.writer.spec.admits(file.state.spec):
            raise StorageError(f"'{path}' holds a state of another size than this memory writes")
    _check_finite(file.state, path)
    return _readable(memory, file.state, path)


def config_of(header: Header, path: str) -> Config:
    """Return the configuration that the state file `path` was made with.

    Raises:
        StorageError: the header holds unknown keys or impossible values.
    """
    with reading_header(path):
        backbone = part_config(BackboneConfig, header.backbone, "backbone")
        return Config(backbone, header.writer, header.reader, seed=header.seed)


def _load_backbone(
    header: Header, config: BackboneConfig, path: str, force: bool
) -> TransformersBackbone:
    """Load the backbone that the state file `path` was written for, from where `config` says.

    Raises:
        StorageError: it is missing, or it is another backbone and `force` is not set.
    """
    source = config.tokenizer if config.path is None else config.path
    built_in = config.path is None and source in BUILT_IN
    if not built_in and not is_local(source):
        raise StorageError(
            f"'{path}' needs the backbone {header.fingerprint}, looked for in '{source}', which is "
            f"not here: name its folder with --backbone"
        )
    if config.path is None and not force and built_weights(config) > MAX_BUILT_WEIGHTS:
        raise StorageError(
            f"'{path}' describes a model of {built_weights(config)} weights to be built for it, more than "
            f"{MAX_BUILT_WEIGHTS}: name its folder with --backbone, or force it"
        )
    backbone = load_backbone(config, header.seed)
    if not force and not backbone.has_fingerprint(header.fingerprint):
        raise StorageError(
            f"'{path}' was written for the backbone {header.fingerprint}, but "
            f"'{config.path or config.type}' is {backbone.fingerprint}: name the right folder with "
            f"--backbone, or force it"
        )
    return backbone


def load_reader(
    file: StateFile, plugin: ReaderPlugin, backbone: TransformersBackbone, path: str
) -> Any:
    """Build the reader that the state file `path` is for, with its weights.

    Raises:
        StorageError: its parameters or weights are not those of this reader.
    """
    with reading_header(path):
        config = part_config(plugin.config, file.header.reader.params, "reader.params")
    try:
        with seeded():
            # Build it on the meta device first: an untrusted file may claim any size, and this allocates nothing.
            with torch.device("meta"), suppress(NotImplementedError):
                first: Any = plugin.build(config, backbone, file.state.spec)
                _check_reader(first, file, plugin.name, path)
            reader: Any = plugin.build(config, backbone, file.state.spec)
    except MemwriteError:
        raise
    except Exception as error:  # a plugin may raise anything on an untrusted file
        raise StorageError(
            f"'{path}' is no state that its reader '{plugin.name}' can read: {type(error).__name__}: {error}"
        ) from None
    _check_reader(reader, file, plugin.name, path)
    reader.load_state_dict(file.weights)
    return reader


def _check_reader(reader: Any, file: StateFile, name: str, path: str) -> None:
    if shapes_of(reader.state_dict()) != shapes_of(file.weights):
        raise StorageError(f"'{path}' holds other weights than its reader '{name}' has")


def _check_finite(state: MemoryState, path: str) -> None:
    """Reject a state that contains NaN or infinity; a bias of -inf hides a slot from a head.

    Raises:
        StorageError: a tensor contains one.
    """
    for name, tensor in state.tensors.items():
        numbers = tensor[~tensor.isneginf()] if name == "bias" else tensor
        if tensor.is_floating_point() and not numbers.isfinite().all():
            raise StorageError(f"'{path}' is damaged: its '{name}' contains NaN or infinity")


def _readable(memory: Components, state: MemoryState, path: str) -> MemoryState:
    """Return the state from the state file `path` on the memory's device, if its reader can let it into the model.

    Raises:
        StorageError: the state does not have the model's sizes.
    """
    device = memory.backbone.info.device
    state = state.to(device)
    try:
        reader: Any = memory.reader
        check_fits(reader.to(device).condition(state), memory.backbone)
    except InputError as error:
        raise StorageError(f"'{path}' cannot be read from: {error}") from None
    return state
