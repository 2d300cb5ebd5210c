"""A memory at rest and a prompt as what vLLM takes in place of a prompt: the vectors of both, as prompt embeddings.

The convention is that of vLLM 0.33 (https://docs.vllm.ai/en/stable/features/prompt_embeds/): a tensor (T, D) for
`LLM.generate([{"prompt_embeds": tensor}])`, and for its server's completions the base64 text of what `torch.save` makes of it.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import torch
from torch import Tensor

from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import ConfigError
from memwrite.protocols import Conditioning
from memwrite.utils.atomic import make_folder, write_bytes
from memwrite.utils.tensor_file import to_bytes

NAME = "prompt_embeds"


def embedded(conditioning: Conditioning, backbone: TransformersBackbone, ids: Tensor) -> Tensor:
    """Return the vectors (M + T, D) of a memory and of the prompt behind it, in the model's dtype.

    Args:
        conditioning: of one row.
        backbone: the model that it is for.
        ids: (T,) int64, of the prompt.

    Raises:
        ConfigError: the memory is more than vectors before the prompt, or the model embeds by more than a table.
    """
    prefix, lengths = conditioning.prefix, conditioning.prefix_lengths
    if prefix is None or conditioning.key_values is not None or conditioning.corrections:
        raise ConfigError(
            "this memory is not of vectors before the prompt alone (kind 'prefix'), and prompt embeddings hold nothing else"
        )
    prompt = backbone.embed(ids[None])[0]
    by_table = backbone.model.get_input_embeddings()(ids[None])[0]
    if backbone.info.ngram > 1 or not torch.equal(prompt, by_table):
        raise ConfigError(
            "this model embeds tokens by more than a table, which vLLM would not do for the tokens that it generates"
        )
    memory = prefix[0] if lengths is None else prefix[0, : int(lengths[0])]
    return torch.cat([memory.to(backbone.info.dtype), prompt.to(backbone.info.dtype)]).cpu()


def to_base64(vectors: Tensor) -> str:
    """Return the text that vLLM's server takes as "prompt_embeds"."""
    data = io.BytesIO()
    torch.save(vectors.contiguous().clone(), data)  # of a view it would save the whole
    return base64.b64encode(data.getvalue()).decode("ascii")


def save(vectors: Tensor, folder: Path) -> None:
    """Write both forms: prompt_embeds.safetensors, whose one tensor is "prompt_embeds", and prompt_embeds.base64.

    Raises:
        StorageError: the folder cannot be written.
    """
    make_folder(folder)
    write_bytes(folder / f"{NAME}.safetensors", to_bytes({NAME: vectors.contiguous()}, {}))
    write_bytes(folder / f"{NAME}.base64", to_base64(vectors).encode())
