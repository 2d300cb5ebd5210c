"""Opens what Doc-to-LoRA's own training saves: `pytorch_model.bin` of github.com/SakanaAI/doc-to-lora.

The file holds settings as objects of the authors' classes. It is read by torch's loader for weights alone, with a class of
our own in place of theirs that keeps values and does nothing: no code of the file runs, and none of theirs is needed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from memwrite.errors import ConfigError, StorageError
from memwrite.plugins import Imported

#: Their Perceiver's heads are of this width, whatever the settings say.
HEAD_WIDTH = 128


class Settings:
    """The values of an object of somebody else's class."""

    def __new__(cls, *values: Any) -> Self:
        """Keep what the object is made from, as an enumeration's member is from its value."""
        made = super().__new__(cls)
        made.values = values
        return made

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


_OBJECTS = (
    "ctx_to_lora.configs.CtxEncoderArguments",
    "ctx_to_lora.modeling.aggregator.AGGREGATOR_TYPE",
    "ctx_to_lora.modeling.aggregator.AggregatorConfig",
    "ctx_to_lora.modeling.ctx_encoder.CTX_ENCODER_TYPE",
    "ctx_to_lora.modeling.hypernet.HypernetConfig",
    "ctx_to_lora.pooling.POOL_FN",
    "peft.tuners.lora.config.LoraConfig",
    "peft.tuners.lora.config.LoraRuntimeConfig",
    "peft.utils.peft_types.PeftType",
    "peft.utils.peft_types.TaskType",
)
#: What a setting must be; those that are not named here are read, or change nothing.
_HYPERNET = {
    "use_light_weight_lora": False, "per_rank_gen": True, "use_per_rank_bias": False, "use_bias": True,
    "per_layer_processing": True, "use_token_mixing": False, "extra_modules": None,
}  # fmt: skip
_HYPERNET_READ = {
    "values", "latent_size", "light_weight_latent_size", "num_pre_head_layers", "dropout_rate", "lora_config",
    "base_hidden_size", "layer_indices", "feature_sizes", "aggregator_config",
}  # fmt: skip
_AGGREGATOR = {
    "aggregator_type": "perceiver", "num_self_attn_per_block": 0, "shared_weights": False,
    "layer_to_layer_ctx_encoder": True, "per_rank_gen": True, "num_extra_modules": 0,
}  # fmt: skip
_AGGREGATOR_READ = {
    "values", "num_layers", "num_modules", "output_size", "feature_size", "pooling_type", "num_latent_factor", "lora_r",
    "n_latent_queries", "num_blocks",
}  # fmt: skip
_ENCODER = {
    "ctx_encoder_model_name_or_path": None, "ctx_encoder_type": "per_layer_activations", "ctx_encoder_last_layer": None,
}  # fmt: skip
_ENCODER_READ = {"values", "layer_idx", "quantize_ctx_encoder", "keep_lm_head"}

#: Their names of weights and ours, in order of replacement.
_NAMES = (
    (r"^aggregator\.perceiver\.modality_projection\.(\w+)_proj", r"perceiver.project.\1"),
    (r"^aggregator\.", ""),
    (r"\.latents_q$", ".latents"),
    (r"coder\.layers\.", "coder.blocks."),
    (r"coder\.layernorm\.", "coder.norm."),
    (r"\.mlp\.(\w+)_proj\.", r".mlp.\1."),
    (r"\.self_attn\.q_proj\.", ".query."),
    (r"\.self_attn\.k_proj\.", ".key."),
    (r"\.self_attn\.v_proj\.", ".value."),
    (r"\.self_attn\.o_proj\.", ".out."),
    (r"\.input_latents_layernorm\.", ".norms.latents."),
    (r"\.input_context_layernorm\.", ".norms.sequence."),
    (r"\.post_attention_layernorm\.", ".norms.attended."),
    (r"\.pre_ff_layernorm\.", ".norms.before_mlp."),
    (r"\.post_ff_layernorm\.", ".norms.after_mlp."),
    (r"^layers\.(\d+)\.layers\.0\.", r"residual.\1.before."),
    (r"^layers\.(\d+)\.layers\.1\.weight", r"residual.\1.up"),
    (r"^layers\.(\d+)\.layers\.1\.bias", r"residual.\1.up_bias"),
    (r"^layers\.(\d+)\.layers\.3\.weight", r"residual.\1.down"),
    (r"^layers\.(\d+)\.layers\.3\.bias", r"residual.\1.down_bias"),
    (r"^layers\.(\d+)\.layers\.4\.", r"residual.\1.after."),
    (r"^scaler_([AB])\.(\w+)_proj$", r"scale_\1.\2"),
    (r"^bias_([AB])\.(\w+)_proj$", r"bias_\1.\2"),
)


def load(folder: Path, base: Path | None) -> Imported:
    """Read a hypernetwork; `base` is the folder of the language model.

    Raises:
        ConfigError: there is no `base`, or a setting asks for something that is not supported.
        StorageError: the file is missing, damaged, or holds something else than weights and settings.
    """
    if base is None:
        raise ConfigError("a hypernetwork needs its language model: name its folder with --base")
    file = _read(folder / "pytorch_model.bin")
    hypernet, encoder = file.pop("hypernet_config"), file.pop("ctx_encoder_args")
    file.pop("base_model_name_or_path", None)
    aggregator, lora = hypernet.aggregator_config, hypernet.lora_config
    _check("hypernet_config", hypernet, _HYPERNET, _HYPERNET_READ)
    _check("aggregator_config", aggregator, _AGGREGATOR, _AGGREGATOR_READ)
    _check("ctx_encoder_args", encoder, _ENCODER, _ENCODER_READ)
    weights = {name.removeprefix("_orig_mod."): tensor for name, tensor in file.items()}
    attention = "aggregator.perceiver.encoder.layers.0.self_attn"
    writer = {
        "rank": lora.r,
        "projections": sorted(name.removesuffix("_proj") for name in lora.target_modules),
        "width": hypernet.latent_size,
        "latents": aggregator.n_latent_queries,
        "blocks": aggregator.num_blocks,
        "heads": len(weights[f"{attention}.q_proj.weight"]) // HEAD_WIDTH,
        "kv_heads": len(weights[f"{attention}.k_proj.weight"]) // HEAD_WIDTH,
        "head_width": HEAD_WIDTH,
        "residual_blocks": hypernet.num_pre_head_layers,
    }
    reader = {"alpha": float(lora.lora_alpha), "rank_scaled": False}
    config = {
        "backbone": {"path": str(base)},
        "writer": {"name": "doc-to-lora", "params": writer},
        "reader": {"name": "per-example-lora", "params": reader},
    }
    named = dict(
        _heads(weights.pop("head.weight"), hypernet.feature_sizes, sorted(lora.target_modules))
    )
    named |= {_name(name): _shaped(name, tensor) for name, tensor in weights.items()}
    return Imported(config, {f"writer.network.{n}": t.float() for n, t in named.items()})


def _read(path: Path) -> dict[str, Any]:
    stands_in: list[Any] = [(Settings, name) for name in _OBJECTS]
    try:
        with torch.serialization.safe_globals(stands_in):
            file = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from None
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
    ) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(
            f"'{path}' is damaged, or holds more than weights and settings: {first}"
        ) from None
    if not isinstance(file, dict) or not {"hypernet_config", "ctx_encoder_args"} <= file.keys():
        raise StorageError(f"'{path}' is no checkpoint of Doc-to-LoRA")
    return file


def _check(where: str, settings: Settings, only: Mapping[str, Any], read: set[str]) -> None:
    for name, value in vars(settings).items():
        found = value.values[0] if isinstance(value, Settings) and value.values else value
        if name in only and found != only[name]:
            raise ConfigError(f"{where}.{name} is {found!r}; supported is {only[name]!r}")
        if name not in only and name not in read:
            raise ConfigError(f"{where} sets {name}, which is not known here")


def _name(theirs: str) -> str:
    for pattern, ours in _NAMES:
        theirs = re.sub(pattern, ours, theirs)
    return theirs


def _shaped(name: str, tensor: Tensor) -> Tensor:
    """Drop the axes of size 1 that they have for broadcasting."""
    if name.startswith("scaler_"):
        return tensor[0, :, :, 0]
    return tensor[0, :, 0, 0] if re.fullmatch(r"layers\.\d+\.layers\.[13]\.bias", name) else tensor


def _heads(
    head: Tensor, sizes: tuple[Mapping[str, int], Mapping[str, int]], modules: list[str]
) -> dict[str, Tensor]:
    """Take the heads of all projections apart: (L, M, width, widest), or without M where there is one."""
    heads = head if head.ndim == 4 else head[:, None]
    inputs, outputs = sizes
    return {
        f"head.{module.removesuffix('_proj')}": heads[
            :, number, :, : inputs[module] + outputs[module]
        ].contiguous()
        for number, module in enumerate(modules)
    }
