"""Conversion of GradMem's own checkpoints: arguments become a config, and weights get memwrite's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from memwrite.checkpoints.imported import backbone_of, read_weights
from memwrite.errors import ConfigError
from memwrite.plugins import Imported
from memwrite_gradient.gradmem_scripts import official_arguments, task_of, tokenizer_of

PROJECTIONS = {"none": "none", "proj": "shared", "per_sample": "per-example"}
NAMES = {
    "mem": "fast.slots",
    "write_st": "controls.write_start",
    "write_end": "controls.write_end",
    "read_st": "controls.read_start",
    "read_end": "controls.read_end",
    "write_head.weight": "head",
    "mem_proj.weight": "fast.projection.weight",
    "mem_proj.bias": "fast.projection.bias",
}


def load(folder: Path, base: Path | None) -> Imported:
    """Load a folder with GradMem's `config.json` and `model.safetensors`; `base` is as in `official_arguments`.

    Raises:
        StorageError: a file is missing or damaged.
        ConfigError: the run used what this writer cannot do.
    """
    arguments = official_arguments(folder, base)
    weights = read_weights(folder / "model.safetensors")
    return convert(arguments, weights, tokenizer_of(arguments, folder, base))


def convert(
    arguments: Mapping[str, Any], weights: Mapping[str, Tensor], tokenizer: str
) -> Imported:
    """Convert GradMem's arguments and weights to a memory's config and weights."""
    config = {
        "backbone": backbone_of(arguments["base_config"], weights, tokenizer),
        "writer": {"name": "gradient", "params": _params(arguments)},
        "reader": {"name": "prefix"},
        "task": task_of(arguments),
    }
    return Imported(config, {weight_name(name): tensor for name, tensor in weights.items()})


def _params(arguments: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("use_adam", "use_write_lora"):
        if arguments.get(name):
            raise ConfigError(
                f"GradMem's {name} is not what this writer does: it cannot be imported"
            )
    steps, order = int(arguments["K"]), str(arguments["grad_mode"])
    last = arguments.get("last_K_second_order")
    second = order == "second" and last is not None and int(last) < steps
    if second and int(last or 0) == 0:
        order, second = "first", False
    reconstruction = 0.0
    if arguments.get("add_inner_loss_to_outer"):
        weight = arguments.get("inner_loss_weight")
        reconstruction = 1.0 if weight is None else float(weight)
    return {
        "slots": int(arguments["n_mem_tokens"]),
        "steps": steps,
        "lr": float(arguments["lr"] if "lr" in arguments else arguments["inner_lr"]),
        "order": order,
        "second_steps": int(last or 0) if second else None,
        "clip_value": arguments.get("inner_clip_value"),
        "clip_norm": arguments.get("inner_clip_norm"),
        "control_tokens": int(arguments.get("n_ctrl_tokens") or 0),
        "projection": PROJECTIONS[arguments.get("mem_proj_mode") or "none"],
        "write_head": bool(arguments.get("use_write_head")),
        "reconstruction_weight": reconstruction,
    }


def weight_name(official: str) -> str:
    """Return the name in a memory's `state_dict` of the weight that is called `official` there."""
    return official if official.startswith("model.") else f"writer.{NAMES.get(official, official)}"
