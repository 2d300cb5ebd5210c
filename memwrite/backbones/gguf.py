"""Conversion of a GGUF file, as llama.cpp runs it, into a folder that transformers loads.

What the file says and transformers would not do is refused: a scaled rotary embedding, tensors that nothing loads, a
way of splitting texts that is not known. The weights become half precision, which no GGUF of quantized weights exceeds.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from memwrite.backbones.size_limits import check_numbers, count_weights
from memwrite.errors import ConfigError, MemwriteError
from memwrite.utils.extras import extra

MAGIC = b"GGUF"
#: Raised with every change of what a conversion makes: older folders in the cache are not used then.
VERSION = 1

_TOKENIZER = "tokenizer.ggml."
#: How texts are split before byte pairs are merged (tokenizer.ggml.pre), where it is GPT-2's way: as it is, or with
#: every digit by itself first.
_SPLIT_AS_GPT2 = frozenset({"gpt-2", "mpt", "olmo", "jais", "trillion", "phi-2"})
_SPLIT_DIGITS = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
#: Metadata of an architecture that changes what it computes, and what the model's config must say of it then.
_SAME_IN_CONFIG = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
}
#: Tokens that end a turn, as families spell them; the file names only one end token.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")
_CONTROL = 3


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that begins as a GGUF does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def convert(path: Path, folder: Path) -> None:
    """Write the model and the tokenizer in the GGUF file `path` into `folder`.

    Raises:
        ConfigError: the file is damaged, or holds what transformers does not load as llama.cpp does.
        MissingExtra: the package `gguf` is not installed.
    """
    with extra("gguf"):
        import accelerate  # noqa: F401 - transformers needs both, and says so in more words
        import gguf  # noqa: F401
    try:
        _convert(path, folder)
    except MemwriteError:
        raise
    except (
        Exception
    ) as error:  # a damaged file makes gguf and transformers raise errors of every kind
        reason = str(error) or type(error).__name__
        raise ConfigError(f"'{path}' is no GGUF file that can be loaded: {reason}") from None


def _convert(path: Path, folder: Path) -> None:
    metadata, tensors = _read(path)
    _check_metadata(path, metadata)
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    with _silent():
        config = AutoConfig.from_pretrained(path.parent, **where)
        check_numbers(config.to_dict(), f"'{path}': ")
        _check_config(path, metadata, config, tensors)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
        _set_split(path, metadata, tokenizer)
        model = _plain(path, config, where)
        if ends := _end_ids(metadata):
            model.generation_config.eos_token_id = ends
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the metadata of a file, and its tensors: name -> count of numbers."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    needed = (f"{_TOKENIZER}tokens", f"{_TOKENIZER}token_type")
    metadata = {
        name: field.contents() if len(field.data) == 1 or name in needed else len(field.data)
        for name, field in reader.fields.items()
    }
    return metadata, {tensor.name: math.prod(map(int, tensor.shape)) for tensor in reader.tensors}


def _check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse a file without what is needed, or with a rotary embedding that transformers would not scale."""
    architecture = metadata.get("general.architecture")
    if architecture is None:
        raise ConfigError(f"'{path}' does not say what architecture its model has")
    if not metadata.get(f"{_TOKENIZER}tokens") or f"{_TOKENIZER}model" not in metadata:
        raise ConfigError(
            f"'{path}' holds no tokenizer, so no text can be given to its model: convert the model again with it"
        )
    if f"{_TOKENIZER}eos_token_id" not in metadata:
        raise ConfigError(f"the tokenizer in '{path}' has no end-of-text (eos) token")
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind != "none" and metadata.get(f"{architecture}.rope.scaling.factor") != 1:
        raise ConfigError(
            f"'{path}' scales its rotary embedding ('{kind}'), which would be lost: take the model as a transformers "
            f"folder instead"
        )


def _check_config(
    path: Path, metadata: Mapping[str, Any], config: Any, tensors: Mapping[str, int]
) -> None:
    """Refuse a file that says more than the model that transformers makes of it has."""
    instead = "take the model as a transformers folder instead"
    architecture = metadata["general.architecture"]
    for name, field in _SAME_IN_CONFIG.items():
        said, has = metadata.get(f"{architecture}.{name}"), getattr(config, field, None)
        if said and said != has:
            raise ConfigError(
                f"'{path}' says {architecture}.{name} = {said}, but its model would run with {has}: {instead}"
            )
    held, meant = sum(tensors.values()), count_weights(config)
    if held != meant:
        odd = [name for name in tensors if name.startswith(("rope_", "mtp"))]
        hint = f" ({', '.join(odd)} would be lost)" if odd else ""
        raise ConfigError(
            f"'{path}' holds {held} weights, but the '{config.model_type}' that it describes has {meant}{hint}: {instead}"
        )


def _set_split(path: Path, metadata: Mapping[str, Any], tokenizer: Any) -> None:
    """Make a tokenizer of byte pairs split texts as the file says, where transformers leaves it at GPT-2's way."""
    backend = tokenizer.backend_tokenizer
    if metadata[f"{_TOKENIZER}model"] != "gpt2" or not isinstance(
        backend.pre_tokenizer, pre_tokenizers.ByteLevel
    ):
        return
    kind = metadata.get(f"{_TOKENIZER}pre")
    if kind in _SPLIT_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    elif kind not in _SPLIT_AS_GPT2:
        raise ConfigError(
            f"'{path}' splits texts in a way that is not known here (tokenizer.ggml.pre = '{kind}'): take the model as "
            f"a transformers folder instead"
        )


def _plain(path: Path, config: Any, where: Mapping[str, Any]) -> Any:
    """Return the model as one of plain weights in float16, which can be saved."""
    unpack = getattr(
        transformers, "GgufConfig", None
    )  # of newer versions, which keep weights packed
    packed = {} if unpack is None else {"quantization_config": unpack(dequantize=True)}
    loaded, report = AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float16, output_loading_info=True, **packed, **where
    )
    if lacking := sorted(report["missing_keys"]):
        raise ConfigError(f"'{path}' lacks the weights {', '.join(lacking[:3])}")
    weights = loaded.state_dict()
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise ConfigError(f"'{path}' holds weights that are no numbers in half precision")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float16
    # Nothing of it is run, and the weights are all replaced.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    return model


def _end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Return every id that ends an answer: the tokenizer's end, and those of a turn and of a message."""
    ends = {
        metadata[f"{_TOKENIZER}{name}_token_id"]
        for name in ("eos", "eot", "eom")
        if f"{_TOKENIZER}{name}_token_id" in metadata
    }
    tokens: Sequence[str] = metadata[f"{_TOKENIZER}tokens"]
    kinds: Sequence[int] = metadata.get(f"{_TOKENIZER}token_type") or ()
    for token, (kind, text) in enumerate(zip(kinds, tokens, strict=False)):
        if kind == _CONTROL and text in _TURN_ENDS:
            ends.add(token)
    return sorted(ends)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the bars and advice of transformers off the screen."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(level)
