"""N-gram codes: what a token's embedding says of the tokens before it, so that a memory can be read under all of them."""

from __future__ import annotations

import hashlib
import inspect
import math
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memwrite.config import NGRAMS
from memwrite.errors import ConfigError

ATTRIBUTE = "memwrite_ngram"
"""Of a model's config: the length of its n-grams, where it has codes of them."""


class NgramEmbedding(nn.Module):
    """Token embeddings, each with a fixed code of its token and the n - 1 before it.

    A code is the product, number by number, of n vectors of random signs, one for each token by its place (binding by
    multiplication: Gayler, arXiv cs/0412059): n-grams that differ in one token have codes that are no more alike than
    any others. Tokens with fewer before them in their text have none.

    Args:
        weight: (V, D) token embeddings, which are trained.
        length: n, at least 2.
        scale: the size of each number of a code.
    """

    def __init__(self, weight: nn.Parameter, length: int, scale: float) -> None:
        super().__init__()
        self.weight = weight
        self.scale = scale
        signs = _signs(length, *weight.shape)
        self.signs: Tensor
        self.register_buffer("signs", signs.to(weight.device), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) int64, real ones first in their rows, as (B, T, D)."""
        embeddings = F.embedding(ids, self.weight)
        before = len(self.signs) - 1
        whole = ids.shape[1] - before
        if whole < 1:
            return embeddings
        codes = self.signs[0][ids[:, before:]]
        for place in range(1, before + 1):
            start = before - place
            codes = codes * self.signs[place][ids[:, start : start + whole]]
        return embeddings + F.pad(codes, (0, 0, before, 0)).to(embeddings.dtype) * self.scale


def attach(model: Any) -> None:
    """Give a model the codes that its config asks for, in training, reading and `generate`.

    Raises:
        ConfigError: it asks for codes that there are none of.
    """
    length, scale = (
        getattr(model.config, ATTRIBUTE, 1),
        getattr(model.config, "initializer_range", 0),
    )
    if type(length) is not int or length not in NGRAMS:
        raise ConfigError(
            f"the model's config says {ATTRIBUTE} = {length!r}, which is no whole number from 1 to {NGRAMS[-1]}"
        )
    if length == 1 or isinstance(model.get_input_embeddings(), NgramEmbedding):
        return
    if not 0 < scale < math.inf:
        raise ConfigError(
            f"backbone.ngram = {length} needs a model whose config says how large embeddings are in the beginning: "
            f"initializer_range is {scale}"
        )
    weight = model.get_input_embeddings().weight
    model.set_input_embeddings(NgramEmbedding(weight, length, scale))
    prepare = partial(_prepare, model)
    prepare.__signature__ = inspect.signature(model.prepare_inputs_for_generation)  # type: ignore[attr-defined]
    model.prepare_inputs_for_generation = prepare


def _prepare(model: Any, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
    """Prepare inputs in place of the model's own method, which embeds what is new on its own, without what came before."""
    inputs: dict[str, Any] = type(model).prepare_inputs_for_generation(model, input_ids, **kwargs)
    new = inputs.get("input_ids")
    if new is not None:
        embeddings = model.get_input_embeddings()(input_ids)
        inputs |= {
            "input_ids": None,
            "inputs_embeds": embeddings[:, input_ids.shape[1] - new.shape[1] :],
        }
    return inputs


def _signs(length: int, vocabulary: int, width: int) -> Tensor:
    """Draw (n, V, D) int8 of 1 and -1, the same wherever and whenever they are drawn."""
    count = length * vocabulary * width
    drawn = hashlib.shake_256(b"memwrite n-gram codes").digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=count)
    return torch.from_numpy(bits.reshape(length, vocabulary, width)).to(torch.int8) * 2 - 1
