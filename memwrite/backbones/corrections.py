"""Which adapters are in force at a layer: the ways in which they travel to it.

What a call needs travels with it: as a forward keyword where there is no cache (so that gradient checkpointing, which
replays a layer with its keywords, recomputes right), and on the cache in generation (which refuses unknown keywords, and
reorders the cache's rows in beam search).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from memwrite.backbones.cache import CarriesAdapters, cache_argument
from memwrite.errors import ConfigError
from memwrite.protocols import LayerAdapter

KEYWORD = "memwrite_corrections"

# In force while the model runs without a cache that carries them; a context variable, so threads never share it. Not all
# families hand keywords on to their layers, or from a layer to its attention.
_corrections: ContextVar[Mapping[int, LayerAdapter] | None] = ContextVar(
    "memwrite_corrections", default=None
)


@contextmanager
def correcting(corrections: Mapping[int, LayerAdapter] | None) -> Iterator[None]:
    """Hold adapters in force for what the calling thread runs within this."""
    if not corrections:
        yield
        return
    token = _corrections.set(corrections)
    try:
        yield
    finally:
        _corrections.reset(token)


def in_force(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], block: nn.Module
) -> Mapping[int, LayerAdapter]:
    """Return the adapters by layer, given the arguments of a decoder layer or of its attention.

    Raises:
        ConfigError: they would be lost where the layer is replayed, or compiled.
    """
    found: Mapping[int, LayerAdapter] = kwargs.get(KEYWORD) or {}
    # GPT-2's layers are given the cache without its name.
    for given in (kwargs.get(cache_argument(kwargs)), *args):
        if not found and isinstance(given, CarriesAdapters):
            found = given.corrections or {}
    if torch.compiler.is_compiling():
        if found:
            raise ConfigError("changes of projections cannot be compiled: leave out compile")
        return {}
    if found:
        return found
    found = _corrections.get() or {}
    if found and block.training and getattr(block, "gradient_checkpointing", False):
        raise ConfigError(
            "the layers of this family lose changes of projections under gradient checkpointing: turn it off"
        )
    return found


def drop_keyword(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take the keyword from a module that does not know it, as a hook before it runs."""
    kwargs.pop(KEYWORD, None)
    return args, kwargs


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Let memories compute in the dtype of their parameters, whatever autocast makes of the model."""
    kind = like.device.type
    # Entering it costs a decoded token more than the whole reading of a small state.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
