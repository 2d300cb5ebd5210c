"""The language model within a model that also sees or hears."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from memwrite.errors import ConfigError


def text_part(model: Any) -> Any:
    """Return the language model of a multimodal model, its weights shared, or the model itself where it is one.

    Raises:
        ConfigError: transformers has no language model of that kind on its own.
    """
    config = model.config
    text = config.get_text_config()
    if text is config:
        return model
    try:
        with torch.device("meta"):
            part = AutoModelForCausalLM.from_config(text, trust_remote_code=False)
    except ValueError:
        part = None
    inner, head = model.get_decoder(), model.get_output_embeddings()
    if part is None or head is None or type(part.base_model) is not type(inner):
        raise ConfigError(
            f"'{config.model_type}' holds a '{text.model_type}', which is no language model on its own: take a model "
            f"of text alone"
        )
    setattr(part, part.base_model_prefix, inner)
    part.set_output_embeddings(head)
    part.config = inner.config
    part.generation_config = model.generation_config
    return part
