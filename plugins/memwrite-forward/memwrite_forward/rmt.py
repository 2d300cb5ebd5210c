"""Conversion of GradMem's RMT checkpoints: arguments become a config, and weights get memwrite's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memwrite_gradient.gradmem_scripts import official_arguments, task_of, tokenizer_of
from torch import Tensor

from memwrite.checkpoints.imported import backbone_of, read_weights
from memwrite.plugins import Imported

PROJECTIONS = {"none": "none", "proj": "write", "proj_rw": "read-write"}
NAMES = {
    "mem": "slots",
    "write_st": "controls.write_start",
    "write_end": "controls.write_end",
    "read_st": "controls.read_start",
    "read_end": "controls.read_end",
    "write_head.weight": "head",
    "mem_proj.weight": "write_projection.weight",
    "mem_proj.bias": "write_projection.bias",
    "read_mem_proj.weight": "read_projection.weight",
    "read_mem_proj.bias": "read_projection.bias",
    "mem_residual_ln.weight": "norm.weight",
    "mem_residual_ln.bias": "norm.bias",
}


def load(folder: Path, base: Path | None) -> Imported:
    """Load a folder with RMT's `config.json` and `model.safetensors`; `base` is as in `official_arguments`.

    Raises:
        StorageError: a file is missing or damaged.
        ConfigError: the language model is not described.
    """
    arguments = official_arguments(folder, base)
    weights = read_weights(folder / "model.safetensors")
    return convert(arguments, weights, tokenizer_of(arguments, folder, base))


def convert(
    arguments: Mapping[str, Any], weights: Mapping[str, Tensor], tokenizer: str
) -> Imported:
    """Convert RMT's arguments and weights to a memory's config and weights."""
    weight = arguments.get("reconstruction_loss_weight")
    reconstruction = (1.0 if weight is None else float(weight)) * bool(
        arguments.get("use_reconstruction_loss")
    )
    # A head that no loss used has learnt nothing.
    head = bool(arguments.get("use_write_head")) and reconstruction > 0
    params = {
        "slots": int(arguments["n_mem_tokens"]),
        "steps": int(arguments["K"]),
        "control_tokens": int(arguments.get("n_ctrl_tokens") or 0),
        "projection": PROJECTIONS[arguments.get("mem_proj_mode") or "none"],
        "residual": bool(arguments.get("use_mem_residual")),
        "reconstruction_weight": reconstruction,
        "write_head": head,
    }
    config = {
        "backbone": backbone_of(arguments["base_config"], weights, tokenizer),
        "writer": {"name": "forward", "params": params},
        "reader": {"name": "prefix"},
        "task": task_of(arguments),
    }
    used = {n: t for n, t in weights.items() if head or n != "write_head.weight"}
    return Imported(config, {weight_name(name): tensor for name, tensor in used.items()})


def weight_name(official: str) -> str:
    """Return the name in a memory's `state_dict` of the weight that is called `official` there."""
    return official if official.startswith("model.") else f"writer.{NAMES.get(official, official)}"
