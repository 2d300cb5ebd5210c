"""Factors that some families put on what they embed, and on their logits, outside of their layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def embeddings(embedded: Tensor, config: Any) -> Tensor:
    """Scale what the embedding module gives, where the model does so itself and would not for embeddings handed in."""
    if config.model_type == "falcon_h1":
        embedded = embedded * config.embedding_multiplier
    return embedded


def logits(projected: Tensor, config: Any) -> Tensor:
    """Scale and cap the output of the output embedding."""
    for name in ("logit_scale", "lm_head_multiplier"):
        if factor := getattr(config, name, None):
            projected = projected * factor
    if divisor := getattr(config, "logits_scaling", None):
        projected = projected / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        projected = (projected / cap).tanh() * cap
    return projected
