"""Run folders, and what a state file says of where it came from."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

import memwrite
from memwrite.backbone import TransformersBackbone
from memwrite.config import BackboneConfig, part_config, to_dict
from memwrite.errors import ConfigError, StorageError
from memwrite.loading import MODEL_FOLDER, load_backbone
from memwrite.state import MemoryState
from memwrite.storage import FORMAT, Header, StoredSpec, write_bytes

if TYPE_CHECKING:
    from memwrite.memory import Memory

CONFIG_FILE, WEIGHTS_FILE = "config.yaml", "weights.safetensors"


def save_run(memory: Memory, folder: Path) -> None:
    """See `Memory.save_run`; the config goes last, so that a folder with one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    config = memory.config
    if config.backbone.trainable or config.backbone.type is not None:
        memory.backbone.save(folder / MODEL_FOLDER, getattr(torch, config.training.save_dtype))
    if weights := _part_weights(memory):
        write_bytes(folder / WEIGHTS_FILE, safetensors.torch.save(weights))
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_bytes(folder / CONFIG_FILE, text.encode())


def load_weights(memory: Memory, path: Path) -> None:
    """Put the weights of a run folder into writer and reader.

    Raises:
        StorageError: the file is damaged or holds other weights.
    """
    try:
        weights = safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise StorageError(f"'{path}' is truncated or damaged: {error}") from None
    shapes, wanted = (
        {name: tensor.shape for name, tensor in tensors.items()}
        for tensors in (weights, _part_weights(memory))
    )
    if shapes != wanted:
        raise StorageError(f"'{path}' holds other weights than this writer and reader have")
    memory.load_state_dict(weights, strict=False)


def header(memory: Memory, state: MemoryState) -> Header:
    """What a state file says of itself."""
    config = memory.config
    return Header(
        format=FORMAT,
        spec=StoredSpec.of(state.spec),
        fingerprint=memory.backbone.fingerprint,
        backbone=to_dict(config.backbone),
        seed=config.seed,
        reader=config.reader,
        writer=config.writer,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        memwrite=memwrite.__version__,
    )


def load_backbone_of(
    header: Header, path: str | Path, folder: str | None, device: str | None, force: bool
) -> tuple[BackboneConfig, TransformersBackbone]:
    """The backbone that the state file `path` was written for; arguments as in `Memory.load`.

    Raises:
        StorageError: it is not where it was, or another one is there.
    """
    try:
        config = part_config(BackboneConfig, header.backbone, "backbone")
    except ConfigError as error:
        raise StorageError(f"'{path}' has a header that does not fit: {error}") from None
    if folder is not None:
        config = replace(config, path=folder, type=None, params={})
    if config.path is not None and not Path(config.path).is_dir():
        raise StorageError(
            f"'{path}' needs the backbone {header.fingerprint}, looked for in '{config.path}', which is "
            f"no folder here: name its folder with --backbone"
        )
    config = replace(config, device=device or config.device, trainable=False)
    backbone = load_backbone(config, header.seed)
    if backbone.fingerprint != header.fingerprint and not force:
        raise StorageError(
            f"'{path}' was written for the backbone {header.fingerprint}, but "
            f"'{config.path or config.type}' is {backbone.fingerprint}: name the right folder with "
            f"--backbone, or force it"
        )
    return config, backbone


def _part_weights(memory: Memory) -> dict[str, Tensor]:
    """Weights of writer and reader, without the backbone's."""
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
        for part, module in (("writer", memory.writer), ("reader", memory.reader))
        if module is not None
        for name, tensor in module.state_dict().items()
    }
