"""Generation behind embeddings, for families that take them and do not say so."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from torch import Tensor


def attach(model: Any) -> None:
    """Let `generate` hand embeddings to a model whose own preparation of inputs names no argument for them.

    transformers looks for the name in the signature; Nemotron-H, Falcon-H1 and Bamba hand all arguments on.
    """
    prepare = model.prepare_inputs_for_generation
    signature = inspect.signature(prepare)
    if "inputs_embeds" in signature.parameters:
        return
    named = partial(_prepare, prepare)
    last = [*signature.parameters.values()]
    extra = inspect.Parameter("inputs_embeds", inspect.Parameter.KEYWORD_ONLY, default=None)
    at = next((i for i, p in enumerate(last) if p.kind is p.VAR_KEYWORD), len(last))
    named.__signature__ = signature.replace(parameters=[*last[:at], extra, *last[at:]])  # type: ignore[attr-defined]
    model.prepare_inputs_for_generation = named


def _prepare(prepare: Any, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = prepare(input_ids, **kwargs)
    return inputs
