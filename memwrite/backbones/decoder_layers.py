"""The decoder layers of a language model: which of them attend, and which keep a state of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from memwrite.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"
#: Kinds of layers, in the words of `config.layer_types`, that hold a state which is no list of keys and values.
RECURRENT = frozenset({"linear_attention", "conv", "hybrid"})
#: Kinds that attend; "hybrid" does both at once.
ATTENDING = frozenset({FULL, SLIDING, "hybrid"})
#: Kinds that hold nothing.
STATELESS = frozenset({"mlp", "moe"})

#: What families call a layer's attention. A "mixer" is whatever the layer's kind says.
_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "mixer")


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer.

    Attributes:
        number: its place in the model, which is also its place in a cache.
        block: the whole layer.
        attention: its self-attention; None where it has none.
        recurrent: whether it keeps a state of its own.
    """

    number: int
    block: nn.Module
    attention: nn.Module | None
    recurrent: bool


def decoder_layers(model: Any) -> list[DecoderLayer]:
    """Return the decoder layers of a transformers causal LM.

    Raises:
        ConfigError: the model is built in a way we do not know.
    """
    found = blocks(model)
    kinds = getattr(model.config, "layer_types", None) or [FULL] * len(found)
    layers = []
    for number, (block, kind) in enumerate(zip(found, kinds, strict=False)):
        attention = (
            None if kind in (RECURRENT | STATELESS) - ATTENDING else child(block, _ATTENTION)
        )
        if attention is None and kind not in RECURRENT | STATELESS:
            break
        layers.append(DecoderLayer(number, block, attention, kind in RECURRENT))
    if not layers or len(layers) != len(found):
        raise ConfigError(f"the attention layers of {type(model).__name__} were not found")
    return layers


def check_numbers(numbers: Iterable[int], count: int) -> None:
    """Refuse changes of projections for layers that a model does not have.

    Args:
        numbers: of the layers to change.
        count: number of the model's layers with attention.

    Raises:
        ConfigError: there is one.
    """
    if not set(numbers) <= set(range(count)):
        raise ConfigError(
            f"changes of projections are for the layers {sorted(numbers)}, but this model has {count} layers "
            f"with attention, numbered from 0, and others cannot be changed"
        )


def attention_layers(model: Any) -> list[tuple[DecoderLayer, nn.Module]]:
    """Return the layers that attend, each with its self-attention, first layer first."""
    return [(each, each.attention) for each in decoder_layers(model) if each.attention is not None]


def attention_modules(model: Any) -> list[nn.Module]:
    """Return the self-attention module of every layer that has one, first layer first."""
    return [attention for _, attention in attention_layers(model)]


def linear_layers(model: nn.Module, first: int = 0) -> list[nn.Module]:
    """Return every linear layer within the blocks, from one of them on: weights (out, in), a `Conv1D`'s (in, out)."""
    chosen = [*blocks(model)][first:]
    return [m for b in chosen for m in b.modules() if isinstance(m, (nn.Linear, Conv1D))]


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the decoder layers of a transformers causal LM as modules."""
    base = getattr(model, "base_model", model)
    return getattr(base, "layers", None) or getattr(base, "h", None) or ()


def child(block: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """Return the first module of these names."""
    children = (getattr(block, name, None) for name in names)
    return next((found for found in children if isinstance(found, nn.Module)), None)
