"""What a file may make us build: sizes that nobody means, or that its weights do not bear out, are refused before any
memory is taken for them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from memwrite.backbones.remote_code import check_attention
from memwrite.errors import ConfigError

#: More layers than any model has; each is an object, whatever its width.
MAX_LAYERS = 2048
#: Of a size that is not a number of layers: vocabularies, positions, widths.
MOST = 1 << 28
#: Weights of a model that is built from scratch for a state file; larger ones are named by their folder.
MAX_BUILT_WEIGHTS = 1 << 27
_SLACK = 1 << 20


def check_numbers(params: Mapping[str, Any], where: str) -> None:
    """Refuse a model's description with sizes that no model has.

    Raises:
        ConfigError: it has one.
    """
    for name, value in _numbers(params, ""):
        most = MAX_LAYERS if "layer" in name.rpartition(".")[2] else MOST
        if value > most:
            raise ConfigError(f"{where}{name} is {value}, and at most {most} can be meant")


def count_weights(described: PretrainedConfig) -> int:
    """Return the number of weights of the model that is described, without making them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
    return sum(weight.numel() for weight in model.parameters())


def check_folder(folder: Path) -> None:
    """Refuse a model folder whose configuration describes more than its files hold.

    Raises:
        ConfigError: it does.
    """
    try:
        data = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # transformers says what is wrong with it
    if not isinstance(data, dict):
        return
    check_attention(data, f"'{folder / 'config.json'}'")
    check_numbers(data, f"'{folder / 'config.json'}': ")
    held = _held(folder)
    try:
        meant = count_weights(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception:  # likewise
        return
    if meant > 2 * held + _SLACK:
        raise ConfigError(
            f"'{folder / 'config.json'}' describes a model of {meant} weights, but the files beside it hold {held}"
        )


def _held(folder: Path) -> int:
    """Return the number of weights in the safetensors files of a folder."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
            names = file.keys()
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return count


def _numbers(data: Any, name: str) -> Iterator[tuple[str, int]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _numbers(value, f"{name}.{key}".lstrip("."))
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _numbers(value, name)
    elif isinstance(data, int) and not isinstance(data, bool):
        yield name, data
