"""The fields of δ-mem's adapter folders, and what they are called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memwrite.errors import ConfigError
from memwrite_delta.config import DeltaConfig

PROJECTIONS = ("q", "k", "v", "o")

#: Fields that say something here, each with the value it has where a folder lacks it.
FIELDS: Mapping[str, Any] = {
    "rank": 8,
    "alpha": 16.0,
    "beta_bias_init": -1.5,
    "normalize_qk": True,
    "couple_lambda": True,
    "state_update_mode": "standard",
    "rankwise_gates": True,
    "output_init": "zero",
    "base_slice_ref_width": 8,
    "online_gain": 0.05,
    "num_state_heads": 1,
    "memory_write_granularity": "token",
    "target_layers": [],
    "delta_heads": list(PROJECTIONS),
    "delta_o_rmsnorm": False,
    "delta_o_rmsnorm_eps": 1e-6,
    "trainable_delta_scale": False,
    "delta_scale_init": 1.0,
    "delta_scale_max": 2.0,
    "delta_scale_granularity": "layer",
}
#: Fields of what their authors have archived: known, but only at these values.
FIXED: Mapping[str, Any] = {
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_partition_routing": "soft",
    "memory_partition_basis": "shared",
    "tie_memory_partition_read_write": False,
    "memory_partition_read_mode": "softmax",
    "memory_partition_sigmoid_gate_bias_init": -2.0,
    "slot_read_top_k": 0,
    "global_memory_mode": "shared_rw",
    "global_memory_read_top_k": 0,
    "global_memory_merge_mode": "gated_residual",
    "global_memory_gate_bias_init": -2.0,
    "global_memory_read_logit_bias": 0.0,
    "memory_reader_layers": [],
    "memory_reader_hidden_size": 1024,
    "memory_reader_residual_scale": 0.1,
    "memory_reader_read_only": True,
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_write_proposals_per_message": 2,
    "synthetic_memory_slots": 1,
    "latent_memory_layers": [],
    "latent_memory_hidden_size": 1024,
    "latent_memory_residual_scale": 0.1,
    "latent_memory_slots": 4,
    "latent_memory_init_std": 0.002,
    "latent_gate_init": 0.01,
    "target_modules": ["self_attn"],
    "delta_scale_parameterization": "alpha_over_rank",
}
_GRANULARITIES = {"token": "token", "message_mean": "message", "sentence_mean": "sentence"}
_INITS = {
    "zero": "zero",
    "random": "random",
    "base_slice": "base-slice",
    "base_slice_fixed": "base-slice",
}


def complete(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Complete the fields of an adapter with their defaults; `source` goes into messages.

    Raises:
        ConfigError: a field is unknown, or has a value that cannot be done.
    """
    for name, value in data.items():
        if name not in FIELDS and name not in FIXED:
            raise ConfigError(f"'{source}' has the field {name}, which is not known")
        if name in FIXED and value != FIXED[name]:
            raise ConfigError(
                f"'{source}' has {name} = {value!r}, and only {FIXED[name]!r} can be done"
            )
    fields = {**FIELDS, **data}
    if isinstance(fields["delta_heads"], str):
        fields["delta_heads"] = [name.strip() for name in fields["delta_heads"].split(",")]
    for name, choices in (
        ("state_update_mode", ("standard", "lambda_outside", "no_lambda")),
        ("memory_write_granularity", _GRANULARITIES),
        ("output_init", _INITS),
        ("delta_scale_granularity", ("layer", "head")),
    ):
        if fields[name] not in choices:
            raise ConfigError(
                f"'{source}' has {name} = {fields[name]!r}, and only {', '.join(choices)} can be done"
            )
    if not set(fields["delta_heads"]) <= set(PROJECTIONS):
        raise ConfigError(
            f"'{source}' has delta_heads = {fields['delta_heads']}, and only {', '.join(PROJECTIONS)} can be done"
        )
    return fields


def to_params(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters of writer "delta" and of reader "lora" for complete fields."""
    mode, granularity = (
        fields["state_update_mode"],
        _GRANULARITIES[fields["memory_write_granularity"]],
    )
    scale = {"layer": "layer", "head": "projection"}[fields["delta_scale_granularity"]]
    forgetting = "coupled" if fields["couple_lambda"] else "free"
    writer = {
        "rank": fields["rank"],
        "heads": fields["num_state_heads"],
        "layers": list(fields["target_layers"]),
        "granularity": granularity,
        "reads": "earlier" if granularity == "token" else "before",
        "gates": "row" if fields["rankwise_gates"] else "head",
        "forgetting": "none" if mode == "no_lambda" else forgetting,
        "update": "lambda_outside" if mode == "lambda_outside" else "standard",
        "normalize": fields["normalize_qk"],
        "beta_bias": fields["beta_bias_init"],
    }
    reader = {
        "projections": [name for name in PROJECTIONS if name in fields["delta_heads"]],
        "alpha": fields["alpha"],
        "normalize": fields["normalize_qk"],
        "init": _INITS[fields["output_init"]],
        "gain": fields["online_gain"],
        "slice_width": fields["rank"]
        if fields["output_init"] == "base_slice"
        else fields["base_slice_ref_width"],
        "o_norm": fields["delta_o_rmsnorm"] and "o" in fields["delta_heads"],
        "o_norm_eps": fields["delta_o_rmsnorm_eps"],
        "scale": scale if fields["trainable_delta_scale"] else "none",
        "scale_init": fields["delta_scale_init"],
        "scale_max": fields["delta_scale_max"],
    }
    return writer, reader


def from_params(writer: DeltaConfig, reader: Any) -> dict[str, Any]:
    """Return the complete fields for parameters of writer "delta" and of reader "lora".

    Raises:
        ConfigError: the format cannot say them.
    """
    by_token = writer.granularity == "token"
    for name, fits in (
        ("writer.params.value_width", writer.values == writer.rank),
        ("writer.params.writes", writer.writes == 1),
        ("writer.params.most_keep", writer.most_keep == 1),
        ("writer.params.keep_bias", writer.keep_bias in (None, -writer.beta_bias)),
        ("writer.params.reads", writer.reads == ("earlier" if by_token else "before")),
        ("reader.params.normalize", reader.normalize == writer.normalize),
        (
            "writer.params.update",
            writer.forgetting != "none" or writer.update == "standard",
        ),
    ):
        if not fits:
            raise ConfigError(f"an official adapter cannot say what {name} does here")
    granularity = {ours: theirs for theirs, ours in _GRANULARITIES.items()}
    inits = {ours: theirs for theirs, ours in _INITS.items()}
    return {
        **FIELDS,
        **FIXED,
        "rank": writer.rank,
        "alpha": reader.alpha,
        "beta_bias_init": writer.beta_bias,
        "normalize_qk": writer.normalize,
        "couple_lambda": writer.forgetting != "free",
        "state_update_mode": "no_lambda" if writer.forgetting == "none" else writer.update,
        "rankwise_gates": writer.gates == "row",
        "output_init": inits[reader.init],
        "base_slice_ref_width": reader.slice_width,
        "online_gain": reader.gain,
        "num_state_heads": writer.heads,
        "memory_write_granularity": granularity[writer.granularity],
        "target_layers": list(writer.layers),
        "delta_heads": list(reader.projections),
        "delta_o_rmsnorm": reader.o_norm,
        "delta_o_rmsnorm_eps": reader.o_norm_eps,
        "trainable_delta_scale": reader.scale != "none",
        "delta_scale_init": reader.scale_init,
        "delta_scale_max": reader.scale_max,
        "delta_scale_granularity": "head" if reader.scale == "projection" else "layer",
    }
