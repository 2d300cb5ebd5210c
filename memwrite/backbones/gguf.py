"""Conversion of a GGUF file, as llama.cpp runs it, into a folder that transformers loads.

The weights become half precision, which no GGUF of quantized weights exceeds.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from memwrite.backbones.gguf_checks import (
    INSTEAD,
    ROPE_FACTORS,
    TOKENIZER,
    check_config,
    check_metadata,
)
from memwrite.backbones.size_limits import check_numbers
from memwrite.errors import ConfigError, MemwriteError
from memwrite.utils.extras import extra

MAGIC = b"GGUF"
#: Raised with every change of what a conversion makes: older folders in the cache are not used then.
VERSION = 1

#: How texts are split before byte pairs are merged (tokenizer.ggml.pre), where it is GPT-2's way: as it is, or with
#: every digit by itself first.
_SPLIT_AS_GPT2 = frozenset({"gpt-2", "mpt", "olmo", "jais", "trillion", "phi-2"})
_SPLIT_DIGITS = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
#: Those of Llama 3, whose pieces that are tokens as a whole are not merged anew, and whose texts begin with a token.
_LLAMA3 = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"})
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: What other ways match.
_PATTERNS = {**dict.fromkeys(_LLAMA3, _WORDS % 3), "qwen2": _WORDS % 1}
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
    check_metadata(path, metadata)
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    with _silent():
        config = AutoConfig.from_pretrained(path.parent, **where)
        check_numbers(config.to_dict(), f"'{path}': ")
        check_config(path, metadata, config, tensors)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
        _set_split(path, metadata, tokenizer)
        _set_special(metadata, tokenizer)
        model = _plain(path, config, where)
        if ends := _end_ids(metadata):
            model.generation_config.eos_token_id = ends
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata of a file, and its tensors: but for the rotary factors without their numbers."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    needed = (f"{TOKENIZER}tokens", f"{TOKENIZER}token_type")
    metadata = {
        name: field.contents() if len(field.data) == 1 or name in needed else len(field.data)
        for name, field in reader.fields.items()
    }
    tensors = {
        tensor.name: torch.tensor(tensor.data)
        if tensor.name == ROPE_FACTORS
        else torch.empty([int(size) for size in tensor.shape], device="meta")
        for tensor in reader.tensors
    }
    return metadata, tensors


def _set_split(path: Path, metadata: Mapping[str, Any], tokenizer: Any) -> None:
    """Make a tokenizer of byte pairs split texts as the file says, where transformers leaves it at GPT-2's way."""
    backend = tokenizer.backend_tokenizer
    if metadata[f"{TOKENIZER}model"] != "gpt2" or not isinstance(
        backend.pre_tokenizer, pre_tokenizers.ByteLevel
    ):
        return
    kind = metadata.get(f"{TOKENIZER}pre")
    if kind in _PATTERNS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PATTERNS[kind]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif kind in _SPLIT_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    elif kind not in _SPLIT_AS_GPT2:
        raise ConfigError(
            f"'{path}' splits texts in a way that is not known here (tokenizer.ggml.pre = '{kind}'): "
            f"{INSTEAD}"
        )


def _set_special(metadata: Mapping[str, Any], tokenizer: Any) -> None:
    """Set what some versions of transformers leave at a default: special tokens, and two ways of Llama 3's."""
    tokens: Sequence[str] = metadata[f"{TOKENIZER}tokens"]
    for name, ours in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        token = metadata.get(f"{TOKENIZER}{name}_token_id")
        if token is not None:
            setattr(tokenizer, f"{ours}_token", tokens[token])
    if metadata.get(f"{TOKENIZER}pre") not in _LLAMA3:
        return
    backend = tokenizer.backend_tokenizer
    backend.model.ignore_merges = True
    if metadata.get(f"{TOKENIZER}add_bos_token", True) and tokenizer.bos_token is not None:
        start, token = tokenizer.bos_token, tokenizer.bos_token_id
        backend.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start}:1 $B:1", special_tokens=[(start, token)]
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
        metadata[f"{TOKENIZER}{name}_token_id"]
        for name in ("eos", "eot", "eom")
        if f"{TOKENIZER}{name}_token_id" in metadata
    }
    tokens: Sequence[str] = metadata[f"{TOKENIZER}tokens"]
    kinds: Sequence[int] = metadata.get(f"{TOKENIZER}token_type") or ()
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
