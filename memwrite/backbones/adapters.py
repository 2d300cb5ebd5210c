"""LoRA adapters in peft's folder format (peft 0.21): put into a model's weights, and written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memwrite.errors import ConfigError
from memwrite.modules.low_rank import LowRank
from memwrite.utils.atomic import make_folder, write_bytes
from memwrite.utils.tensor_file import to_bytes

#: A run folder keeps the corrections that it trained in here.
ADAPTER_FOLDER = "adapter"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

#: Settings of peft that change no number of a finished adapter, or that its weights tell by themselves.
_HARMLESS = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules",
        "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
        "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
        "target_modules", "task_type", "use_rslora", "loftq_config", "eva_config",
    }
)  # fmt: skip
#: Ways of beginning that leave the model's own weights as they were.
_BEGINNINGS = (True, False, "gaussian", "orthogonal", "eva", None)


@dataclass(frozen=True)
class Adapter:
    """Corrections of linear layers, all of one rank.

    Attributes:
        corrections: name of a module in the model -> what is added to its weight (out, in).
        alpha: α; a correction counts α/r-fold.
        base: name or path of the model that is corrected.
        transposed: whether the model's weights are (in, out), as GPT-2's.
    """

    corrections: Mapping[str, LowRank]
    alpha: float
    base: str
    transposed: bool = False

    def apply(self, model: nn.Module) -> None:
        """Add the corrections to the weights of `model`.

        Raises:
            ConfigError: it is another model than they were made for.
        """
        for name, correction in self.corrections.items():
            _add(model, name, correction, self.base)

    def save(self, folder: Path, notes: Mapping[str, str] | None = None) -> None:
        """Write a folder that peft reads.

        Args:
            folder: is made if it is not there.
            notes: go into the metadata of the weights.

        Raises:
            StorageError: it cannot be written.
        """
        make_folder(folder)
        weights = {}
        for name, correction in self.corrections.items():
            for factor, tensor in (("A", correction.A), ("B", correction.B)):
                key = f"{_PREFIX}{name}.lora_{factor}.weight"
                weights[key] = tensor.detach().cpu().contiguous()
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": len(next(iter(self.corrections.values())).A),
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted({name.rpartition(".")[2] for name in self.corrections}),
            "fan_in_fan_out": self.transposed,
            "bias": "none",
            "inference_mode": True,
        }
        named = {"format": "pt", **(notes or {})}
        write_bytes(folder / WEIGHTS_FILE, to_bytes(weights, named))
        write_bytes(folder / CONFIG_FILE, json.dumps(settings, indent=2).encode())


def read(folder: Path) -> Adapter:
    """Read a LoRA folder.

    Raises:
        ConfigError: it holds no LoRA, or one that does more than that.
    """
    settings = _settings(folder)
    corrections = {
        name: LowRank(down, up, _scale(settings, name, len(down)))
        for name, (down, up) in _modules(_weights(folder), folder)
    }
    transposed = settings.get("fan_in_fan_out") is True
    return Adapter(corrections, float(settings["lora_alpha"]), str(folder), transposed)


@torch.no_grad()
def _add(model: nn.Module, name: str, correction: LowRank, where: str) -> None:
    try:
        module: Any = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise ConfigError(
            f"the adapter '{where}' corrects '{name}', which is no linear layer of this model: it was made for another one"
        )
    weight: Tensor = module.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    down, up = (factor.to(weight.device, dtype) for factor in (correction.A, correction.B))
    wanted = tuple(weight.T.shape if isinstance(module, Conv1D) else weight.shape)
    if (len(up), down.shape[-1], len(down)) != (*wanted, up.shape[-1]):
        raise ConfigError(
            f"the adapter '{where}' has {tuple(up.shape)} times {tuple(down.shape)} for '{name}', which is {wanted}: it "
            f"was made for another model"
        )
    change = LowRank(down, up, correction.scale).weight()
    change = change.T if isinstance(module, Conv1D) else change
    weight.copy_((weight.to(dtype) + change).to(weight.dtype))


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG_FILE).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"backbone.adapter '{folder}' holds no {CONFIG_FILE} that can be read: {error.strerror}"
        ) from None
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ConfigError(f"'{folder / CONFIG_FILE}' is damaged: it should be a JSON object")
    if settings.get("peft_type") != "LORA":
        raise ConfigError(
            f"backbone.adapter '{folder}' is a {settings.get('peft_type')}, and only LORA can be put into weights"
        )
    for name, value in settings.items():
        if name not in _HARMLESS and value not in (None, False, {}, [], "none"):
            raise ConfigError(
                f"the adapter in '{folder}' sets {name} to {value!r}, which is not supported: take a plain LoRA"
            )
    if settings.get("init_lora_weights") not in _BEGINNINGS:
        raise ConfigError(
            f"the adapter in '{folder}' began with init_lora_weights={settings['init_lora_weights']!r}, which changes the "
            f"model's own weights: convert it to a plain LoRA with peft first"
        )
    alpha, patterns = settings.get("lora_alpha"), settings.get("alpha_pattern") or {}
    numbers = [alpha, *(patterns.values() if isinstance(patterns, dict) else [None])]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise ConfigError(f"'{folder / CONFIG_FILE}' is damaged: its alphas should be numbers")
    return settings


def _weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        return safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"backbone.adapter '{folder}' holds no {WEIGHTS_FILE} that can be read: {error.strerror}"
        ) from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"'{path}' is truncated or damaged: {error}") from None


def _modules(weights: Mapping[str, Tensor], folder: Path) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:  # fmt: skip
    """Yield the name of every corrected module with its A and B."""
    known = re.compile(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight")
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        match = known.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise ConfigError(f"the adapter in '{folder}' holds '{name}', which no plain LoRA has")
        factors.setdefault(match[1], {})[match[2]] = tensor
    for name, pair in factors.items():
        if len(pair) < 2:
            raise ConfigError(
                f"the adapter in '{folder}' holds only one of two factors of '{name}'"
            )
        yield name, (pair["A"], pair["B"])


def _scale(settings: Mapping[str, Any], name: str, rank: int) -> float:
    """Return what the product B A of a module counts, as peft does."""
    patterns = settings.get("alpha_pattern") or {}
    own = (alpha for key, alpha in patterns.items() if name == key or name.endswith(f".{key}"))
    alpha = float(next(own, settings["lora_alpha"]))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
