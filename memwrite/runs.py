"""Run folders, and what a state file says of where it came from."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

import memwrite
from memwrite.backbone import TransformersBackbone
from memwrite.config import BackboneConfig, Config, part_config, to_dict
from memwrite.errors import (
    ConfigError,
    ContractViolation,
    InputError,
    MemwriteError,
    StorageError,
)
from memwrite.limits import MOST_BUILT
from memwrite.loading import MODEL_FOLDER, built_weights, load_backbone
from memwrite.plugins import ReaderPlugin
from memwrite.seeding import seeded
from memwrite.state import MemoryState
from memwrite.storage import FORMAT, Header, StateFile, StoredSpec, make_folder, saving, write_bytes
from memwrite.tokenizer import BUILT_IN

if TYPE_CHECKING:
    from memwrite.memory import Memory

CONFIG_FILE, WEIGHTS_FILE = "config.yaml", "weights.safetensors"


def save_run(memory: Memory, folder: Path) -> None:
    """See `Memory.save_run`; the config goes last, so that a folder with one is complete."""
    make_folder(folder)
    config = memory.config
    said = {}
    if memory.backbone.own:
        _save_model(memory, folder / MODEL_FOLDER)
    else:
        said = {"backbone": memory.backbone.fingerprint, "dtype": config.backbone.dtype}
    if weights := _part_weights(memory):
        write_bytes(folder / WEIGHTS_FILE, safetensors.torch.save(weights, said))
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_bytes(folder / CONFIG_FILE, text.encode())


def _save_model(memory: Memory, folder: Path) -> None:
    """Files are renamed into `folder` when all are written."""
    make_folder(folder)
    with saving(folder), tempfile.TemporaryDirectory(prefix=".saving.", dir=folder.parent) as name:
        memory.backbone.save(Path(name), getattr(torch, memory.config.training.save_dtype))
        for file in Path(name).iterdir():
            file.replace(folder / file.name)


def load_weights(memory: Memory, path: Path) -> None:
    """Put the weights of a run folder into writer and reader.

    Raises:
        StorageError: the file is damaged, holds other weights, or was trained with another backbone.
    """
    try:
        weights = safetensors.torch.load(path.read_bytes())
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"'{path}' is truncated or damaged: {error}") from None
    # Rounded to another dtype the same weights have another fingerprint.
    same_dtype = said.get("dtype") == memory.config.backbone.dtype
    if same_dtype and said.get("backbone") != memory.backbone.fingerprint:
        raise StorageError(
            f"'{path}' was trained with the backbone {said.get('backbone')}, but "
            f"'{memory.config.backbone.path}' is {memory.backbone.fingerprint}: set backbone.path to the right one"
        )
    if _shapes(weights) != _shapes(_part_weights(memory)):
        raise StorageError(f"'{path}' holds other weights than this writer and reader have")
    memory.load_state_dict(weights, strict=False)


def header(memory: Memory, state: MemoryState) -> Header:
    """What a state file says of itself."""
    config = memory.config
    backbone = config.backbone
    if backbone.path is not None and Path(backbone.path).is_dir():
        backbone = replace(backbone, path=str(Path(backbone.path).resolve()))
    return Header(
        format=FORMAT,
        spec=StoredSpec.of(state.spec),
        fingerprint=memory.backbone.fingerprint,
        backbone=to_dict(backbone),
        seed=config.seed,
        reader=config.reader,
        writer=config.writer,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        memwrite=memwrite.__version__,
        writer_fingerprint=memory.writer_fingerprint,
    )


@contextmanager
def _reading_header(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (ConfigError, ContractViolation) as error:
        raise StorageError(f"'{path}' has a header that does not fit: {error}") from None


def config_of(header: Header, path: str | Path) -> Config:
    """What the state file `path` was made with.

    Raises:
        StorageError: the header holds unknown keys or impossible values.
    """
    with _reading_header(path):
        backbone = part_config(BackboneConfig, header.backbone, "backbone")
        return Config(backbone, header.writer, header.reader, seed=header.seed)


def load_backbone_of(
    header: Header, config: BackboneConfig, path: str | Path, force: bool
) -> TransformersBackbone:
    """The backbone that the state file `path` was written for, found where `config` says.

    Raises:
        StorageError: it is not there, or another one is and `force` is not set.
    """
    source = config.tokenizer if config.path is None else config.path
    built_in = config.path is None and source in BUILT_IN
    if not built_in and not os.path.isdir(source):
        raise StorageError(
            f"'{path}' needs the backbone {header.fingerprint}, looked for in '{source}', which is "
            f"no folder here: name its folder with --backbone"
        )
    if config.path is None and not force and built_weights(config) > MOST_BUILT:
        raise StorageError(
            f"'{path}' describes a model of {built_weights(config)} weights to be built for it, more than {MOST_BUILT}: "
            f"name its folder with --backbone, or force it"
        )
    backbone = load_backbone(config, header.seed)
    if backbone.fingerprint != header.fingerprint and not force:
        raise StorageError(
            f"'{path}' was written for the backbone {header.fingerprint}, but "
            f"'{config.path or config.type}' is {backbone.fingerprint}: name the right folder with "
            f"--backbone, or force it"
        )
    return backbone


def load_reader_of(
    file: StateFile, plugin: ReaderPlugin, backbone: TransformersBackbone, path: str | Path
) -> Any:
    """The reader that the state file `path` is for, with its weights.

    Raises:
        StorageError: its parameters or weights are not those of this reader.
    """
    with _reading_header(path):
        config = part_config(plugin.config, file.header.reader.params, "reader.params")
    try:
        with seeded():
            # First without memory for it: the file says how large it is, and may say anything.
            with torch.device("meta"), suppress(NotImplementedError):
                first: Any = plugin.build(config, backbone, file.state.spec)
                _check_reader(first, file, plugin.name, path)
            reader: Any = plugin.build(config, backbone, file.state.spec)
    except MemwriteError:
        raise
    except Exception as error:  # the plugin's own, on what a stranger's file says
        raise StorageError(
            f"'{path}' is no state that its reader '{plugin.name}' can read: {type(error).__name__}: {error}"
        ) from None
    _check_reader(reader, file, plugin.name, path)
    reader.load_state_dict(file.weights)
    return reader


def _check_reader(reader: Any, file: StateFile, name: str, path: str | Path) -> None:
    if _shapes(reader.state_dict()) != _shapes(file.weights):
        raise StorageError(f"'{path}' holds other weights than its reader '{name}' has")


def check_finite(state: MemoryState, path: str | Path) -> None:
    """Refuse a state that would make every answer a number that is none.

    Raises:
        StorageError: it holds infinities or no numbers.
    """
    for name, tensor in state.tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise StorageError(f"'{path}' is damaged: its '{name}' is not finite")


def state_for(memory: Memory, file: StateFile, path: str | Path) -> MemoryState:
    """The state in the state file `path`, for a memory that is there already.

    Raises:
        StorageError: it is for another backbone, reader or size of state.
    """
    if file.header.fingerprint != memory.backbone.fingerprint:
        raise StorageError(
            f"'{path}' was written for the backbone {file.header.fingerprint}, but this one is "
            f"{memory.backbone.fingerprint}"
        )
    own = memory.reader.state_dict()
    same = own.keys() == file.weights.keys() and all(
        torch.equal(own[name].cpu(), file.weights[name]) for name in own
    )
    if file.header.reader.name != memory.config.reader.name or not same:
        raise StorageError(f"'{path}' was written for another reader than this memory has")
    if memory.writer is not None and not memory.writer.spec.admits(file.state.spec):
        raise StorageError(f"'{path}' holds a state of another size than this memory writes")
    check_finite(file.state, path)
    return readable(memory, file.state, path)


def readable(memory: Memory, state: MemoryState, path: str | Path) -> MemoryState:
    """The state from the state file `path`, on the memory's device, where its reader can let it into the model.

    Raises:
        StorageError: it is not of the model's sizes.
    """
    state = state.to(memory.backbone.info.device)
    try:
        memory.condition(state)
    except InputError as error:
        raise StorageError(f"'{path}' cannot be read from: {error}") from None
    return state


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _part_weights(memory: Memory) -> dict[str, Tensor]:
    """Weights of writer and reader, without the backbone's."""
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
        for part, module in (("writer", memory.writer), ("reader", memory.reader))
        if module is not None
        for name, tensor in module.state_dict().items()
    }
