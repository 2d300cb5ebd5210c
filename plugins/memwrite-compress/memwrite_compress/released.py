"""Weights that the authors of AutoCompressor, CCM and ICAE have released, in their own formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from memwrite.checkpoints.imported import (
    backbone_of,
    read_json,
    read_torch_weights,
    read_weights,
)
from memwrite.errors import ConfigError, StorageError
from memwrite.plugins import Imported

_PROJECTIONS = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
}  # fmt: skip
_LORA = re.compile(
    r"(?:icae\.)?base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])\.(?:default\.)?weight"
)
_CCM_FOLDER = re.compile(r".*-(concat|merge)(_recur)?-ntok(\d+)")
#: What peft writes into adapter_config.json that has no part in what the adapter computes here, and what it must say else.
_PEFT_IGNORED = frozenset(
    ("base_model_name_or_path", "inference_mode", "lora_dropout", "peft_type", "revision", "task_type", "target_modules",
     "lora_alpha", "r", "init_lora_weights", "auto_mapping")
)  # fmt: skip
_PEFT_NEUTRAL: tuple[object, ...] = (None, False, "none", [], {})
#: The α of ICAE's scripts, which no file holds, and their tokens per memory token.
_ICAE_ALPHA, _ICAE_RATE = 32.0, 4
#: Vectors of ICAE behind its memory tokens: AE, LM and FT.
_ICAE_SPECIAL = 3


def autocompressor(folder: Path, base: Path | None) -> Imported:
    """Load a whole model with `embed_summary`, of the Llama family; its tokenizer is in `folder` or `base`.

    Raises:
        StorageError: a file is missing or damaged.
        ConfigError: it is of a family whose summary tokens have no position.
    """
    described = read_json(folder / "config.json")
    if described.get("model_type") != "llama":
        raise ConfigError(
            f"'{folder}' is an AutoCompressor of the family {described.get('model_type')!r}: only those of Llama can be "
            f"imported, since OPT's vectors and summary tokens have no positions there"
        )
    slots = int(described.pop("summary_length"))
    keep = 4 if described.pop("accumulate_summary") else 1
    described.pop("segment_gradient_checkpointing", None)
    weights = {n: t for n, t in _weights(folder).items() if not n.endswith("rotary_emb.inv_freq")}
    tokens = weights.pop("embed_summary.weight")
    config = {
        "backbone": backbone_of(described, weights, str(base or folder)),
        "writer": {"name": "autocompressor", "params": {"slots": slots, "keep": keep}},
        "reader": {"name": "prefix"},
    }
    model = {n if n.startswith("model.model.") else f"model.{n}": t for n, t in weights.items()}
    return Imported(config, {**model, "writer.tokens": tokens})


def ccm(folder: Path, base: Path | None) -> Imported:
    """Load a compression adapter, whose folder is named as the authors' scripts do: `...-concat_recur-ntok2`.

    Args:
        folder: with `adapter_config.json` and the weights.
        base: the language model; where the authors have trained it first (`llama-7b-no`), with that LoRA merged.

    Raises:
        StorageError: a file is missing or damaged, or holds what is no adapter's weight.
        ConfigError: a setting is unknown, or cannot be done; or `base` is missing.
    """
    named = _CCM_FOLDER.fullmatch(folder.resolve().name)
    if named is None:
        raise ConfigError(
            f"'{folder}' does not say in its name how memories are kept: name it as the authors do, "
            f"'...-concat_recur-ntokM' or '...-merge_recur-ntokM', with nothing behind that ('-sink' keeps the first token "
            f"of a text in sight, which cannot be done here)"
        )
    form, recurrent, slots = named[1], named[2] is not None, int(named[3])
    settings = read_json(folder / "adapter_config.json")
    unknown = sorted(
        name for name, value in settings.items()
        if name not in _PEFT_IGNORED and value not in _PEFT_NEUTRAL
    )  # fmt: skip
    if unknown:
        raise ConfigError(f"'{folder}' has settings that cannot be done here: {', '.join(unknown)}")
    weights = _weights(folder)
    table = "base_model.model.model.embed_tokens.comp_embeddings.weight"
    tokens = weights.pop(table, weights.pop(table.replace("comp_", "gist_"), None))
    if tokens is None or len(tokens) not in (slots, 2 * slots):
        raise StorageError(f"'{folder}' has no embeddings of {slots} compression tokens")
    params: dict[str, Any] = {"recurrent": recurrent}
    if form == "merge":
        params["unrotate"] = False  # as they were trained
    alpha = float(settings["lora_alpha"])
    # SUM tokens are behind the compression tokens; what they would compute is never used.
    return _adapter(folder, base, f"ccm-{form}", params, alpha, weights, {"tokens": tokens[:slots]})


def icae(folder: Path, base: Path | None) -> Imported:
    """Load an adapter of ICAE's second version: the one safetensors file in `folder`.

    Args:
        folder: with the weights; the authors' scripts alone say that α is 32 and the compression rate 4.
        base: the language model.

    Raises:
        StorageError: a file is missing or damaged, or holds what is no adapter's weight.
        ConfigError: `base` is missing.
    """
    weights = _weights(folder)
    table = weights.pop("memory_token_embed.weight", None)
    if table is None:
        raise StorageError(f"'{folder}' has no memory_token_embed.weight")
    slots = len(table) - _ICAE_SPECIAL
    own = {"tokens": table[:slots], "answer": table[-1:]}
    params = {"segment": _ICAE_RATE * slots}
    return _adapter(folder, base, "icae", params, _ICAE_ALPHA, weights, own)


def _adapter(
    folder: Path,
    base: Path | None,
    writer: str,
    params: Mapping[str, Any],
    alpha: float,
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> Imported:
    """Return a memory around the language model in `base`, given what is no LoRA weight by its names in the writer."""
    if base is None:
        raise ConfigError(
            f"'{folder}' is an adapter: name the folder of its language model with --base"
        )
    found = {f"writer.{name}": tensor.float() for name, tensor in own.items()}
    projections: set[str] = set()
    ranks: set[int] = set()
    for name, tensor in weights.items():
        match = _LORA.fullmatch(name)
        if match is None or match[2] not in _PROJECTIONS:
            raise StorageError(f"'{folder}' holds the weight '{name}', which no adapter has")
        projection = _PROJECTIONS[match[2]]
        projections.add(projection)
        ranks.add(tensor.shape[0 if match[3] == "A" else 1])
        found[f"writer.lora.{match[1]}.{match[3]}.{projection}"] = tensor.float()
    if len(ranks) != 1:
        raise StorageError(
            f"'{folder}' should hold LoRA weights of one rank, but has {sorted(ranks)}"
        )
    ordered = [name for name in _PROJECTIONS.values() if name in projections]
    lora = {"rank": ranks.pop(), "alpha": alpha, "projections": ordered}
    config = {
        "backbone": {"path": str(base)},
        "writer": {"name": writer, "params": {"slots": len(own["tokens"]), **lora, **params}},
        "reader": {"name": "prefix" if writer == "icae" else "key-value"},
    }
    return Imported(config, found)


def _weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all safetensors files in a folder, or where there is none of pytorch_model*.bin."""
    files = sorted(folder.glob("*.safetensors")), sorted(folder.glob("pytorch_model*.bin"))
    found: dict[str, Tensor] = {}
    for file in files[0]:
        found |= read_weights(file)
    for file in [] if files[0] else files[1]:
        found |= read_torch_weights(file)
    if not found:
        raise StorageError(
            f"'{folder}' holds no weights: neither *.safetensors nor pytorch_model*.bin"
        )
    return found
