"""What importers of released checkpoints share: reading untrusted folders, and describing their backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from memwrite.errors import ConfigError, StorageError

MAX_JSON = 1 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in an untrusted file.

    Raises:
        StorageError: the file is missing, too large or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise StorageError(f"'{path}' is larger than a configuration can be")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise StorageError(f"'{path}' is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise StorageError(f"'{path}' should hold a JSON object")
    return data


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an untrusted safetensors file.

    Raises:
        StorageError: the file is missing or damaged.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise StorageError(f"'{path}' is truncated or damaged: {error}") from None


def read_torch_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an untrusted file of `torch.save`; nothing else in it is unpickled.

    Raises:
        StorageError: the file is missing or damaged, or holds something else.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged or hostile file makes torch raise errors of every kind
        raise StorageError(f"'{path}' is damaged, or holds more than tensors: {error}") from None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise StorageError(f"'{path}' should hold tensors by name")
    return weights


def backbone_of(
    base: Mapping[str, Any], weights: Mapping[str, Tensor], tokenizer: str
) -> dict[str, Any]:
    """Return the `backbone` part of a config for a transformers configuration, of the size that the weights have.

    Args:
        base: the transformers configuration.
        weights: those of the released checkpoint, by name.
        tokenizer: a folder with a tokenizer, or the name of a built-in one.

    Raises:
        ConfigError: `base` names no model type.
    """
    if not isinstance(base.get("model_type"), str):
        raise ConfigError("the language model's configuration names no model_type")
    ignored = ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype")
    params = {
        key: value
        for key, value in base.items()
        if key not in ignored and not key.startswith("_") and value is not None
    }
    table = next(
        (t for n, t in weights.items() if n.endswith(("embed_tokens.weight", "wte.weight"))), None
    )
    if table is not None:
        params["vocab_size"] = table.shape[0]
    return {
        "type": base["model_type"],
        "params": params,
        "tokenizer": tokenizer,
        "attention": "eager",
        "trainable": True,
    }
