"""Run folders: a configuration, the weights of writer and reader, and the backbone where it is in no other folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from memwrite import build
from memwrite.backbones.adapters import ADAPTER_FOLDER, Adapter
from memwrite.backbones.loading import MODEL_FOLDER
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.build import Components
from memwrite.checkpoints.container import with_prefix
from memwrite.config import Config, load_config, to_dict
from memwrite.errors import ConfigError, StorageError
from memwrite.utils.atomic import make_folder, saving, write_bytes
from memwrite.utils.tensor_file import to_bytes

CONFIG_FILE, WEIGHTS_FILE = "config.yaml", "weights.safetensors"


def save_run(memory: Components, folder: Path, adapter: Adapter | None = None) -> None:
    """Write a run folder in place of any that is there; the config goes last, so that a folder with one is complete.

    Args:
        memory: what to save.
        folder: where.
        adapter: the corrections that the backbone's weights hold beside what its config names.

    Raises:
        StorageError: the place cannot be written.
    """
    make_folder(folder)
    config = memory.config
    metadata = {}
    if adapter is not None:
        adapter.save(folder / ADAPTER_FOLDER)
    elif not _runs_from(memory, folder):
        _remove(folder / ADAPTER_FOLDER)
    if memory.backbone.needs_saving:
        _save_model(memory, folder / MODEL_FOLDER)
    else:
        metadata = {"backbone": memory.backbone.fingerprint, "dtype": config.backbone.dtype}
        if not _runs_from(memory, folder):
            _remove(folder / MODEL_FOLDER)
    _save_weights(memory, folder, metadata)
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_bytes(folder / CONFIG_FILE, text.encode())


def copy_run(memory: Components, origin: Path, folder: Path) -> None:
    """Write the run folder that `memory` came from, with the weights that it has now; it depends on `origin` no more.

    Args:
        memory: of the run folder
        origin: which is left as it is.
        folder: where.

    Raises:
        StorageError: a place cannot be read or written.
    """
    make_folder(folder)
    metadata: dict[str, str] = {}
    with saving(folder):
        if (origin / WEIGHTS_FILE).exists():
            with safe_open(origin / WEIGHTS_FILE, "pt") as file:
                metadata = file.metadata() or {}
        if (origin / ADAPTER_FOLDER).is_dir():
            shutil.copytree(origin / ADAPTER_FOLDER, folder / ADAPTER_FOLDER, dirs_exist_ok=True)
    if (origin / MODEL_FOLDER).is_dir():
        _save_model(memory, folder / MODEL_FOLDER)
    _save_weights(memory, folder, metadata)
    write_bytes(folder / CONFIG_FILE, (origin / CONFIG_FILE).read_bytes())


def open_run(
    folder: Path, overrides: Sequence[str], backbone: TransformersBackbone | None
) -> Components:
    """Build the memory of a run folder, with its weights; arguments as in `Memory.from_config`.

    Raises:
        ConfigError: the config cannot be built, or overrides would replace the model in the folder.
        StorageError: the weights do not fit.
    """
    config = load_config(folder / CONFIG_FILE, overrides)
    if (folder / MODEL_FOLDER).is_dir() or (folder / ADAPTER_FOLDER).is_dir():
        _check_backbone_unchanged(config, folder)
        trained = replace(config.backbone, path=str(folder), adapter=None, type=None, params={})
        if (folder / ADAPTER_FOLDER).is_dir():
            trained = replace(trained, lora_rank=0)
        config = replace(config, backbone=trained)
    memory = build.from_config(config, backbone)
    if (folder / WEIGHTS_FILE).exists():
        _load_weights(memory, folder / WEIGHTS_FILE)
    return memory


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_backbone_unchanged(config: Config, folder: Path) -> None:
    stored = load_config(folder / CONFIG_FILE).backbone
    for name in ("path", "adapter", "type", "params", "tokenizer", "ngram"):
        if getattr(config.backbone, name) != getattr(stored, name):
            raise ConfigError(
                f"backbone.{name} cannot be changed: '{folder}' holds a model of its own; to go on from its weights, "
                f"train '{folder / CONFIG_FILE}' with training.start={folder}"
            )


def _save_weights(memory: Components, folder: Path, metadata: Mapping[str, str]) -> None:
    if weights := _part_weights(memory):
        write_bytes(folder / WEIGHTS_FILE, to_bytes(weights, metadata))
    else:
        _remove(folder / WEIGHTS_FILE)


def _save_model(memory: Components, folder: Path) -> None:
    """Write the backbone into `folder`; files are renamed into it when all are written, then older ones are removed."""
    if folder.is_symlink():  # to a model of somebody else, which stays as it is
        _remove(folder)
    make_folder(folder)
    with saving(folder), tempfile.TemporaryDirectory(prefix=".saving.", dir=folder.parent) as name:
        memory.backbone.save(Path(name), getattr(torch, memory.config.training.save_dtype))
        new = [file.name for file in Path(name).iterdir()]
        for file in new:
            # Libraries leave some files unreadable for others: whoever may look into the folder may read the model.
            (Path(name) / file).chmod(folder.stat().st_mode & 0o666)
            (Path(name) / file).replace(folder / file)
        for old in folder.iterdir():
            if old.name not in new:  # a tokenizer, or a shard, of the model that was here before
                _remove(old)


def _runs_from(memory: Components, folder: Path) -> bool:
    """Return whether the backbone was loaded from the run folder itself."""
    path = memory.config.backbone.path
    return path is not None and Path(path).resolve() in (
        folder.resolve(),
        (folder / MODEL_FOLDER).resolve(),
    )


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, if it is there.

    Raises:
        StorageError: it cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be removed: {error.strerror}") from None


def _load_weights(memory: Components, path: Path) -> None:
    """Put the weights of a run folder into writer and reader.

    Raises:
        StorageError: the file is damaged, holds other weights, or was trained with another backbone.
    """
    try:
        weights = safetensors.torch.load(path.read_bytes())
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"'{path}' is truncated or damaged: {error}") from None
    # Rounded to another dtype the same weights have another fingerprint.
    same_dtype = metadata.get("dtype") == memory.config.backbone.dtype
    if same_dtype and not memory.backbone.has_fingerprint(metadata.get("backbone", "")):
        raise StorageError(
            f"'{path}' was trained with the backbone {metadata.get('backbone')}, but "
            f"'{memory.config.backbone.path}' is {memory.backbone.fingerprint}: set backbone.path to the right one"
        )
    if shapes_of(weights) != shapes_of(_part_weights(memory)):
        raise StorageError(f"'{path}' holds other weights than this writer and reader have")
    for part, module in _parts(memory).items():
        module.load_state_dict(with_prefix(weights, f"{part}."))


def _parts(memory: Components) -> dict[str, nn.Module]:
    parts: dict[str, Any] = {"writer": memory.writer, "reader": memory.reader}
    return {name: cast(nn.Module, part) for name, part in parts.items() if part is not None}


def _part_weights(memory: Components) -> dict[str, Tensor]:
    """Return the weights of writer and reader, without the backbone's."""
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
        for part, module in _parts(memory).items()
        for name, tensor in module.state_dict().items()
    }
