"""A memory at rest as an adapter in peft's folder format (peft 0.21), and back: a cartridge, or a LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from memwrite.backbones import adapters
from memwrite.backbones.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.checkpoints.imported import read_json, read_weights
from memwrite.errors import ConfigError, StorageError
from memwrite.modules.low_rank import LowRank
from memwrite.protocols import Conditioning, KeyValues, LayerAdapter
from memwrite.state import MemoryState, StateSpec
from memwrite.utils.atomic import make_folder, write_bytes
from memwrite.utils.tensor_file import to_bytes

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
#: Where a folder of ours names the model that it is for, in the metadata of its weights.
FINGERPRINT = "memwrite.backbone"


def save(
    conditioning: Conditioning, backbone: TransformersBackbone, base: str, folder: Path
) -> None:
    """Write what one memory does to its model, as a folder for `PeftModel.from_pretrained`.

    Args:
        conditioning: of one row.
        backbone: the model that it is for.
        base: name or path of that model.
        folder: is made if it is not there.

    Raises:
        ConfigError: peft has no form for it.
        StorageError: the folder cannot be written.
    """
    kinds = conditioning.prefix, conditioning.key_values, conditioning.corrections
    if conditioning.key_values is not None and kinds == (None, conditioning.key_values, None):
        _save_cartridge(conditioning.key_values, backbone, base, folder)
    elif conditioning.corrections and kinds == (None, None, conditioning.corrections):
        _lora(conditioning.corrections, backbone, base).save(
            folder, {FINGERPRINT: backbone.fingerprint}
        )
    else:
        raise ConfigError(
            "this memory is neither key-values nor low-rank weights, and peft has no form for it that is exact"
        )


def _save_cartridge(
    past: KeyValues, backbone: TransformersBackbone, base: str, folder: Path
) -> None:
    if past.recurrent is not None or backbone.recurrent:
        raise ConfigError("a cartridge of peft has no place for the states of recurrent layers")
    kept = past.mask[0]
    slots = int(kept.sum())
    if not slots:
        raise ConfigError("this memory has no slots: write something into it first")
    if past.bias is not None and bool(past.bias[0][..., kept].any()):
        raise ConfigError(
            "this memory has a bias on its slots, for which a cartridge of peft has no place"
        )
    # peft's queries stand at the position that is the number of slots.
    by = (slots - past.next_position)[:, None].expand(-1, past.mask.shape[1])
    keys = backbone.rotate(past.keys, by) if bool(by.any()) else past.keys
    pairs = torch.stack([keys[0], past.values[0]], 1)[..., kept, :]  # (L, 2, Hkv, M, Dh)
    info = backbone.info
    settings = {
        "peft_type": "CARTRIDGE",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": slots,
        "num_frozen_tokens": 0,
        "token_dim": info.kv_heads * info.head_dim,
        "num_attention_heads": info.kv_heads,
        "num_layers": info.layers,
        "num_transformer_submodules": 1,
        "inference_mode": True,
    }
    weights = {"prompt_embeddings": pairs.permute(3, 0, 1, 2, 4).flatten(1).cpu().contiguous()}
    named = {"format": "pt", FINGERPRINT: backbone.fingerprint}
    make_folder(folder)
    write_bytes(folder / WEIGHTS_FILE, to_bytes(weights, named))
    write_bytes(folder / CONFIG_FILE, json.dumps(settings, indent=2).encode())


def low_rank(corrections: Mapping[int, LayerAdapter], width: int) -> dict[tuple[int, str], LowRank]:
    """Return the low-rank weights of every corrected projection, by layer and name.

    Args:
        corrections: of any number of rows.
        width: D, of the hidden states.

    Raises:
        ConfigError: a correction is something else.
    """
    found: dict[tuple[int, str], LowRank] = {}
    for layer, adapter in corrections.items():
        for name, delta in adapter(torch.zeros(1, 1, width)).items():
            if not isinstance(delta, LowRank):
                raise ConfigError(
                    f"this memory changes '{name}' of layer {layer} by more than low-rank weights, for which peft has no form"
                )
            found[layer, name] = delta
    return found


def _lora(
    corrections: Mapping[int, LayerAdapter], backbone: TransformersBackbone, base: str
) -> Adapter:
    """Return the LoRA of one row; its factors are of one rank, and count as they are."""
    found = low_rank(corrections, backbone.info.hidden_size)
    rank = max(change.A.shape[-2] for change in found.values())
    factors = {}
    for (layer, name), change in found.items():
        down, up = (x[0] if x.ndim == 3 else x for x in (change.A, change.B))
        missing = rank - len(down)
        factors[backbone.projection_module(layer, name)] = LowRank(
            F.pad(down, (0, 0, 0, missing)), F.pad(up * change.scale, (0, missing)), 1.0
        )
    transposed = any(isinstance(backbone.model.get_submodule(name), Conv1D) for name in factors)
    return Adapter(factors, float(rank), base, transposed)


def load(folder: Path, backbone: TransformersBackbone) -> MemoryState:
    """Read a cartridge or a LoRA as a state of one row: of kind "keyvalue", or "lowrank" with weights B A.

    Raises:
        ConfigError: it was made for another model, or does more than that.
        StorageError: a file is missing or damaged.
    """
    settings = read_json(folder / CONFIG_FILE)
    weights = read_weights(folder / WEIGHTS_FILE)
    _check_base(folder / WEIGHTS_FILE, backbone)
    if settings.get("peft_type") == "CARTRIDGE":
        return _cartridge(settings, weights, backbone, folder)
    return _low_rank_state(adapters.read(folder), backbone, folder)


def _check_base(path: Path, backbone: TransformersBackbone) -> None:
    with safetensors.safe_open(path, "pt") as file:
        own = (file.metadata() or {}).get(FINGERPRINT)
    if own is not None and not backbone.has_fingerprint(own):
        raise StorageError(
            f"'{path.parent}' was made for another model than this one, as their fingerprints say: name the right one"
        )


def _cartridge(
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    backbone: TransformersBackbone,
    folder: Path,
) -> MemoryState:
    info = backbone.info
    table = weights.get("prompt_embeddings")
    wanted = settings.get("num_virtual_tokens"), info.layers * 2 * info.kv_heads * info.head_dim
    if table is None or tuple(table.shape) != wanted or backbone.recurrent:
        has = "none" if table is None else tuple(table.shape)
        raise ConfigError(
            f"'{folder}' should hold prompt_embeddings {wanted} for this model, but holds {has}: it was made for another one"
        )
    slots = len(table)
    pairs = table.view(slots, info.layers, 2, info.kv_heads, info.head_dim).permute(2, 1, 3, 0, 4)
    shape = info.layers, info.kv_heads, slots, info.head_dim
    shapes = {"keys": shape, "values": shape, "mask": (slots,), "next_position": ()}
    keys, values = pairs.to(info.state_dtype)[:, None].contiguous()
    spec = StateSpec("keyvalue", shapes, tuple(range(info.layers)), info.state_dtype)
    mask = torch.ones(1, slots, dtype=torch.bool)
    return MemoryState(
        spec, {"keys": keys, "values": values, "mask": mask, "next_position": torch.tensor([slots])}
    )


def _low_rank_state(adapter: Adapter, backbone: TransformersBackbone, folder: Path) -> MemoryState:
    info = backbone.info
    places = {}
    for layer, name in product(range(info.layers), PROJECTIONS):
        with suppress(ConfigError):
            places[backbone.projection_module(layer, name)] = layer, name
    unknown = adapter.corrections.keys() - places.keys()
    if unknown:
        raise ConfigError(
            f"the adapter in '{folder}' corrects '{min(unknown)}', which is no projection of this model's layers"
        )
    found = {places[module]: change for module, change in adapter.corrections.items()}
    layers = tuple(sorted({layer for layer, _ in found}))
    tensors: dict[str, Tensor] = {}
    for name in sorted({name for _, name in found}):
        changes = [found.get((layer, name)) for layer in layers]
        rank = max(len(change.A) for change in changes if change is not None)
        outputs, inputs = backbone.projection(layers[0], name).shape
        down = torch.zeros(1, len(layers), rank, inputs, dtype=info.state_dtype)
        up = torch.zeros(1, len(layers), outputs, rank, dtype=info.state_dtype)
        for index, change in enumerate(changes):
            if change is not None:
                if (len(change.B), change.A.shape[1]) != (outputs, inputs):
                    raise ConfigError(
                        f"the adapter in '{folder}' was made for another model: '{name}' has other sizes"
                    )
                down[0, index, : len(change.A)] = change.A
                up[0, index, :, : len(change.A)] = change.scale * change.B
        tensors |= {f"A.{name}": down, f"B.{name}": up}
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
    return MemoryState(StateSpec("lowrank", shapes, layers, info.state_dtype), tensors)
