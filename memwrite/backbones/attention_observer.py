"""What attention layers compute, handed to whoever asks: queries, keys and values after norm and rotary embedding.

Models look their attention function up by the name in their config. Ours has a name of its own, calls the function that
was configured, and before that the observer of the calling thread, if there is one, and what a memory adds to the logits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from memwrite.backbones import slot_bias
from memwrite.errors import ConfigError
from memwrite.protocols import LayerActivations

Observer = Callable[[LayerActivations], None]

_PREFIX = "memwrite_"
_observer: ContextVar[Observer | None] = ContextVar("memwrite_observer", default=None)
# What the layer's attention was given, from its entry on: hidden states, and their positions if it was told.
_given: ContextVar[tuple[Tensor, Tensor | None] | None] = ContextVar("memwrite_given", default=None)


def install(model: Any, attention_modules: list[nn.Module]) -> str:
    """Route the model's attention through the observer, and return the name of the implementation it had."""
    if not attention_modules:
        return "eager"
    original = str(model.config._attn_implementation).removeprefix(_PREFIX)
    name = _PREFIX + original
    AttentionInterface.register(name, _observed(original))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
    model.config._attn_implementation = name
    for layer, attention in enumerate(attention_modules):
        if hasattr(attention, "_memwrite_layer"):  # the model has been here before
            continue
        attention._memwrite_layer = layer  # type: ignore[assignment]
        attention.register_forward_pre_hook(_remember, with_kwargs=True)
    return original


@contextmanager
def observing(observer: Observer | None, layers: int) -> Iterator[None]:
    """Call `observer` at every attention layer that the calling thread runs within this.

    Raises:
        ConfigError: it was called at another number of layers than the model has.
    """
    if observer is None:
        yield
        return
    seen = 0

    def counting(activations: LayerActivations) -> None:
        nonlocal seen
        seen += 1
        observer(activations)

    token = _observer.set(counting)
    try:
        yield
    finally:
        _observer.reset(token)
        _given.set(None)
    if seen != layers:
        raise ConfigError(
            f"this model's attention cannot be observed: {seen} of {layers} layers called the observer"
        )


def _remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not torch.compiler.is_compiling() and (_observer.get() is not None or slot_bias.waiting()):
        _given.set((args[0] if args else kwargs["hidden_states"], kwargs.get("position_ids")))


def _observed(original: str) -> Callable[..., Any]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **rest: Any,
    ) -> Any:
        given = None if torch.compiler.is_compiling() else _given.get()
        if given is not None:
            _given.set(None)
            hidden, positions = given
            scale = rest.get("scaling") or query.shape[-1] ** -0.5
            layer = module._memwrite_layer
            assert isinstance(layer, int)
            cap = rest.get("softcap")
            seen = LayerActivations(layer, hidden, query, key, value, float(scale), positions, cap)
            observer = _observer.get()
            if observer is not None:
                observer(seen)
            attention_mask = slot_bias.ruled(attention_mask, seen)
        if original == "eager":
            # Every family has an eager function of its own.
            return _eager_of(module)(module, query, key, value, attention_mask, **rest)
        function = ALL_ATTENTION_FUNCTIONS[original]
        return function(module, query, key, value, attention_mask, **rest)

    return attention


def _eager_of(module: nn.Module) -> Callable[..., Any]:
    """Return the eager attention of a module's family; Falcon has none, and is like Llama."""
    family = sys.modules[type(module).__module__]
    found: Callable[..., Any] = getattr(family, "eager_attention_forward", eager_attention_forward)
    return found
