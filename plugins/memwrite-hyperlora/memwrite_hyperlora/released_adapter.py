"""Opens what Generative Adapter's own training saves: github.com/chentong0/generative-adapter, in peft's folder format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memwrite.checkpoints.imported import read_json, read_weights
from memwrite.errors import ConfigError
from memwrite.plugins import Imported
from memwrite_hyperlora.config import NORMS, PROJECTIONS

#: Settings that a finished adapter does not depend on.
_HARMLESS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "fastlora_attn_len", "fastlora_dropout", "fastlora_init",
        "fastlora_training_attention_mask", "inference_mode", "lora_alpha", "lora_dropout", "peft_type", "peft_version",
        "revision", "task_type", "target_modules",
    }
)  # fmt: skip
#: Settings that are read, or that must have one of these values.
_READ = frozenset(
    {"fastlora_r", "fastlora_inter_size", "fastlora_window", "fastlora_max_rank", "fastlora_alpha", "fastlora_param"}
)  # fmt: skip
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "fastlora_arch": ("aassbb",),
    "fastlora_merge": ("pre-norm-sum",),
    "fastlora_norm": NORMS,
    "fastlora_gist_len": (0, None),
    "bias": ("none",),
    "lora_r": (0,),
}
_WEIGHT = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.base_layer\.(?:self_attn|mlp)\.(\w+)_proj\."
    r"fastlora_(A1|A2|A3|B|hidden_state_norm)\.weight"
)


def load(folder: Path, base: Path | None) -> Imported:
    """Read an adapter; `base` is the folder of the language model.

    Raises:
        ConfigError: there is no `base`, or a setting asks for something else than the paper's adapter.
        StorageError: a file is missing or damaged.
    """
    if base is None:
        raise ConfigError("an adapter needs its language model: name its folder with --base")
    settings = _settings(folder / "adapter_config.json")
    parts = _parts(read_weights(folder / "adapter_model.safetensors"))
    layers = sorted({layer for layer, _, _ in parts})
    present = {name for _, name, _ in parts}
    names = [name for name in PROJECTIONS if name in present]

    def stacked(part: str) -> Tensor:
        return torch.stack([torch.stack([parts[n, name, part] for name in names]) for n in layers])

    weights = {
        "writer.norm": stacked("hidden_state_norm"),
        "writer.keys": stacked("A2"),
        "writer.values": stacked("A3"),
    }
    for (layer, name, part), tensor in parts.items():
        if part in ("A1", "B"):
            weights[f"reader.layers.{layer}.{part[0]}.{name}"] = tensor
    writer = {
        "rank": settings["fastlora_r"],
        "key_width": settings["fastlora_inter_size"],
        "heads": len(names),
        "layers": layers,
        "window": settings["fastlora_window"],
    }
    reader = {
        "projections": names,
        "alpha": float(settings["fastlora_alpha"]),
        "norm": settings["fastlora_norm"],
        "svd_rank": settings["fastlora_max_rank"],
    }
    config = {
        "backbone": {"path": str(base)},
        "writer": {"name": "generative-adapter", "params": writer},
        "reader": {"name": "generative-adapter", "params": reader},
    }
    return Imported(config, {name: tensor.float() for name, tensor in weights.items()})


def _settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    if settings.get("peft_type") != "FASTLORA":
        raise ConfigError(f"'{path}' is of type {settings.get('peft_type')!r}, not 'FASTLORA'")
    for name, value in settings.items():
        if name in _ONLY:
            if value not in _ONLY[name]:
                allowed = " or ".join(repr(one) for one in _ONLY[name])
                raise ConfigError(f"'{path}' sets {name} to {value!r}; supported is {allowed}")
        elif name not in _HARMLESS | _READ and value is not None:
            raise ConfigError(f"'{path}' sets {name} to {value!r}, which is not known here")
    return settings


def _parts(weights: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
    """Return the weights by layer, projection and part."""
    parts = {}
    for name, tensor in weights.items():
        match = _WEIGHT.fullmatch(name)
        if match is None or match[2] not in PROJECTIONS:
            raise ConfigError(f"the adapter holds '{name}', which none of this kind has")
        parts[int(match[1]), match[2], match[3]] = tensor
    return parts
