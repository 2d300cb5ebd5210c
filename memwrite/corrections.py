"""Corrections of attention projections from outside: hooks that are installed once and hold no state.

What a call needs travels with it: as a forward keyword where there is no cache (so that gradient
checkpointing, which replays a layer with its keywords, recomputes right), and on the cache in generation
(which refuses unknown keywords, and reorders the cache's rows in beam search).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, StaticCache
from transformers.pytorch_utils import Conv1D

from memwrite.errors import ConfigError
from memwrite.protocols import Additions, Corrects

KEYWORD = "memwrite_corrections"

# Lives from an attention module's entry to its exit; a context variable, so threads never share it.
_additions: ContextVar[Additions | None] = ContextVar("memwrite_additions", default=None)


class _Carries(Cache):  # type: ignore[misc]
    """A key-value cache that carries corrections along, reordering their rows with its own."""

    corrections: Mapping[int, Corrects] | None = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._reorder(indices)

    def _reorder(self, index: Tensor) -> None:
        if self.corrections:
            self.corrections = {layer: c.rows(index) for layer, c in self.corrections.items()}


class CorrectedCache(_Carries, DynamicCache):  # type: ignore[misc]
    """It grows with the text."""


class CorrectedStaticCache(_Carries, StaticCache):  # type: ignore[misc]
    """Its size is fixed when it is made."""


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The self-attention module of every layer of a transformers causal LM, first layer first.

    Raises:
        ConfigError: the model is built in a way we do not know.
    """
    blocks = _blocks(model)
    found = [getattr(block, "self_attn", None) or getattr(block, "attn", None) for block in blocks]
    modules = [module for module in found if isinstance(module, nn.Module)]
    if not modules or len(modules) != len(found):
        raise ConfigError(f"the attention layers of {type(model).__name__} were not found")
    return modules


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """Every linear layer within the blocks of a transformers causal LM: weights (out, in), a `Conv1D`'s (in, out)."""
    return [m for b in _blocks(model) for m in b.modules() if isinstance(m, (nn.Linear, Conv1D))]


def _blocks(model: nn.Module) -> Sequence[nn.Module]:
    base = getattr(model, "base_model", model)
    return getattr(base, "layers", None) or getattr(base, "h", None) or ()


def _projections(attention: nn.Module) -> list[tuple[nn.Module, Sequence[str]]]:
    """Each projection module with the names of what it computes, in the order it packs them."""
    for names in (
        {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"},
        {"c_attn": "qkv", "c_proj": "o"},
        {"qkv_proj": "qkv", "o_proj": "o"},
    ):
        if all(hasattr(attention, name) for name in names):
            return [(getattr(attention, name), tuple(what)) for name, what in names.items()]
    raise ConfigError(f"the projections of {type(attention).__name__} were not found")


def projection_weight(attention: nn.Module, name: str, widths: Mapping[str, int]) -> Tensor:
    """The weight (output width, input width) of one of `attention`'s projections, packed or not."""
    module, names = next(pair for pair in _projections(attention) if name in pair[1])
    weight: Any = module.weight
    if isinstance(module, Conv1D):
        weight = weight.T
    found: Tensor = torch.split(weight, [widths[n] for n in names])[names.index(name)]
    return found


def install_hooks(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Make every attention layer of `model` take corrections; `widths`: output width of q, k, v, o."""
    for layer, attention in enumerate(attention_modules(model)):
        attention.register_forward_pre_hook(partial(_enter, layer), with_kwargs=True)
        attention.register_forward_hook(_leave, always_call=True)
        for module, names in _projections(attention):
            module.register_forward_hook(partial(_add, names, widths))


def _full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Memories compute in the dtype of their parameters, whatever autocast makes of the model."""
    kind = like.device.type
    # Entering it costs a decoded token more than the whole reading of a small state.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _enter(
    layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cache = kwargs.get("past_key_values")
    corrections = kwargs.pop(KEYWORD, None) or getattr(cache, "corrections", None) or {}
    if torch.compiler.is_compiling():
        if corrections:
            raise ConfigError("corrections of projections cannot be compiled: leave out compile")
        return args, kwargs
    correction = corrections.get(layer)
    hidden = args[0] if args else kwargs["hidden_states"]
    with _full_precision(hidden):
        _additions.set(correction(hidden) if correction else None)
    return args, kwargs


def _leave(_module: nn.Module, _args: Any, _output: Any) -> None:
    if not torch.compiler.is_compiling():
        _additions.set(None)


def _add(
    names: Sequence[str],
    widths: Mapping[str, int],
    _module: nn.Module,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor | None:
    additions = None if torch.compiler.is_compiling() else _additions.get()
    if not additions or not any(name in additions for name in names):
        return None
    parts = []
    for name in names:
        addition = additions.get(name)
        if addition is None:
            parts.append(output.new_zeros(*output.shape[:-1], widths[name]))
        else:
            with _full_precision(output):
                value = addition if isinstance(addition, Tensor) else addition(args[0])
            parts.append(value.to(output.dtype))
    return output + (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))
