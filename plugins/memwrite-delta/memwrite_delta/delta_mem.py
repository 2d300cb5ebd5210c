"""δ-mem's own adapter folders (github.com/declare-lab/delta-Mem): `delta_mem_config.json`, `delta_mem_adapter.pt`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memwrite.checkpoints.imported import read_json, read_torch_weights
from memwrite.config import part_config
from memwrite.errors import ConfigError, StorageError
from memwrite.plugins import Exported, Imported, registry
from memwrite.utils.atomic import make_folder, write_bytes
from memwrite_delta.config import DeltaConfig
from memwrite_delta.delta_mem_fields import PROJECTIONS, complete, from_params, to_params

CONFIG_FILE, WEIGHTS_FILE = "delta_mem_config.json", "delta_mem_adapter.pt"

_WRITER = {
    "memory_k_proj": "key.weight",
    "memory_v_proj": "value.weight",
    "beta_proj": "beta.weight",
    "beta_bias": "beta.bias",
    "lambda_proj": "keep.weight",
    "lambda_bias": "keep.bias",
}
_READER = {
    "memory_q_proj": "query",
    "delta_o_rmsnorm_weight": "o_norm",
    "delta_scale_raw": "scale",
    **{f"delta_{name}_proj": f"delta.{name}" for name in PROJECTIONS},
}
_NAMES = {**_WRITER, **_READER}
_PATTERN = re.compile(r"(?:model\.)+layers\.(\d+)\.self_attn\.(\w+)")


def load(folder: Path, base: Path | None) -> Imported:
    """Load an adapter folder, for the language model in `base`.

    Raises:
        StorageError: a file is missing or damaged, or holds what is no adapter's weight.
        ConfigError: a field is unknown, or has a value that cannot be done; or `base` is missing.
    """
    if base is None:
        raise ConfigError(
            f"'{folder}' is an adapter: name the folder of its language model with --base"
        )
    fields = complete(read_json(folder / CONFIG_FILE), str(folder))
    writer, reader = to_params(fields)
    config = {
        "backbone": {"path": str(base)},
        "writer": {"name": "delta", "params": writer},
        "reader": {"name": "lora", "params": reader},
    }
    return Imported(config, _renamed(read_torch_weights(folder / WEIGHTS_FILE), fields, folder))


def renamed(official: str, tensor: Tensor, fields: Mapping[str, Any]) -> tuple[str, Tensor] | None:
    """Return a weight of an adapter with the complete `fields`, with its name in a Memory's `state_dict`.

    Return None for a weight that is never used: the format has maps for all projections.

    Raises:
        KeyError: no adapter has such a weight.
    """
    match = _PATTERN.fullmatch(official)
    if match is None:
        raise KeyError(official)
    weight, active = match[2], [name for name in PROJECTIONS if name in fields["delta_heads"]]
    idle = {f"delta_{name}_proj" for name in PROJECTIONS if name not in active}
    if "o" not in active:
        idle.add("delta_o_rmsnorm_weight")
    if fields["state_update_mode"] == "no_lambda":
        idle |= {"lambda_proj", "lambda_bias"}
    if weight in idle:
        return None
    if weight == "delta_scale_raw" and fields["delta_scale_granularity"] == "head":
        tensor = tensor[[PROJECTIONS.index(name) for name in active]]
    part = "writer.cells" if weight in _WRITER else "reader.layers"
    return f"{part}.{match[1]}.{_NAMES[weight]}", tensor


def _renamed(
    weights: Mapping[str, Tensor], fields: Mapping[str, Any], folder: Path
) -> dict[str, Tensor]:
    by_name: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        try:
            new = renamed(name, tensor, fields)
        except KeyError:
            raise StorageError(
                f"'{folder}' holds the weight '{name}', which no adapter has"
            ) from None
        if new is not None:
            by_name[new[0]] = new[1].float()
    return by_name


def save(memory: Exported, folder: Path) -> None:
    """Write `memory`, of writer "delta" and reader "lora", as an adapter folder; its language model is not in it.

    Raises:
        ConfigError: it is another pair, or has settings that the format cannot express.
        StorageError: the place cannot be written.
    """
    pair = memory.config.writer.name, memory.config.reader.name
    if pair != ("delta", "lora"):
        raise ConfigError(
            f"an official adapter is writer delta with reader lora, not {pair[0]} with {pair[1]}"
        )
    writer = part_config(DeltaConfig, memory.config.writer.params, "writer.params")
    kind = registry().reader("lora").config
    fields = from_params(writer, part_config(kind, memory.config.reader.params, "reader.params"))
    buffer = io.BytesIO()
    torch.save(_official(memory, fields), buffer)
    make_folder(folder)
    write_bytes(folder / WEIGHTS_FILE, buffer.getvalue())
    write_bytes(folder / CONFIG_FILE, json.dumps(fields, indent=2).encode())


def _official(memory: Exported, fields: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights by their official names; the format has maps for all projections, in use or not."""
    official = {}
    for layer in memory.spec.layers:
        weights = {
            official: memory.weights[name].detach().cpu().clone()
            for official, suffix in _NAMES.items()
            for part in (f"writer.cells.{layer}", f"reader.layers.{layer}")
            if (name := f"{part}.{suffix}") in memory.weights
        }
        reads = fields["rank"] * fields["num_state_heads"]
        for projection in PROJECTIONS:
            width = memory.backbone.projection(layer, projection).shape[0]
            weights.setdefault(f"delta_{projection}_proj", torch.zeros(width, reads))
        if fields["delta_scale_granularity"] == "head" and fields["trainable_delta_scale"]:
            raw = torch.zeros(len(PROJECTIONS))
            active = [PROJECTIONS.index(name) for name in fields["delta_heads"]]
            raw[sorted(active)] = weights["delta_scale_raw"]
            weights["delta_scale_raw"] = raw
        for name, tensor in weights.items():
            official[f"model.layers.{layer}.self_attn.{name}"] = tensor
    return official
