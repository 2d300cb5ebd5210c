"""The run folders of GradMem's scripts (github.com/yurakuratov/gradmem), which train GradMem and RMT alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memwrite.checkpoints.imported import read_json
from memwrite.errors import ConfigError

# What GradMem's scripts take from the hub where a run trains from scratch (their `base_model`), but for the sizes.
_BASES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "llama": {
        "model_type": "llama",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
    },
}


def official_arguments(folder: Path, base: Path | None) -> dict[str, Any]:
    """Return the arguments of a run of GradMem's scripts, with the model's description as `base_config`.

    Args:
        folder: with a `config.json`, either the run's arguments or the model's own.
        base: folder with the `config.json` of the language model, where the run started from a pretrained one.

    Raises:
        StorageError: a file is missing or damaged.
        ConfigError: the language model is not described.
    """
    data = read_json(folder / "config.json")
    arguments: dict[str, Any] = dict(data.get("cli_args") or data)
    if base is not None:
        arguments["base_config"] = read_json(base / "config.json")
    elif not arguments.get("base_config"):
        arguments["base_config"] = _base(arguments, folder)
    return arguments


def _base(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if arguments.get("pretrained_model"):
        raise ConfigError(
            f"'{folder}' was trained from the pretrained model '{arguments['pretrained_model']}': name a folder "
            f"with its config.json and tokenizer with --base"
        )
    name = str(arguments.get("base_model"))
    if name not in _BASES:
        known = ", ".join(_BASES)
        raise ConfigError(f"'{folder}' has the base model {name!r}, which is not one of {known}")
    layers, heads, width = (int(arguments[key]) for key in ("n_layer", "n_head", "n_embd"))
    if name == "gpt2":
        sizes = {"n_layer": layers, "n_head": heads, "n_embd": width}
    else:
        sizes = {
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "hidden_size": width,
            "head_dim": width // heads,
            "intermediate_size": 4 * width,
        }
    return {**_BASES[name], **sizes}


def task_of(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the key-value task that a run of GradMem's scripts was trained on, by the name of its data; else None."""
    named = re.search(r"N(\d+)-K(\d+)V(\d+)", str(arguments.get("data_path")))
    if named is None:
        return None
    sizes = zip(("pairs", "key_length", "value_length"), map(int, named.groups()), strict=True)
    return {"name": "kv-retrieval", "params": dict(sizes)}


def tokenizer_of(arguments: Mapping[str, Any], folder: Path, base: Path | None) -> str:
    """Return the `backbone.tokenizer` for a run of GradMem's scripts: that of `base` or `folder`, else their alphabet's.

    Raises:
        ConfigError: there is none, and the run did not use the alphabet of 62 characters.
    """
    for place in (base, folder):
        if place is not None and (place / "tokenizer.json").exists():
            return str(place)
    if "kv_alphabet_62" in str(arguments.get("tokenizer_path", "kv_alphabet_62")):
        return "characters"
    raise ConfigError(
        f"'{folder}' used the tokenizer '{arguments['tokenizer_path']}', which is not there: put its files "
        f"beside config.json"
    )
