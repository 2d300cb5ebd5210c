"""Changes of a model's projections and attention logits from outside: hooks that are installed once and hold no state.

What a call needs travels with it: as a forward keyword where there is no cache (so that gradient
checkpointing, which replays a layer with its keywords, recomputes right), and on the cache in generation
(which refuses unknown keywords, and reorders the cache's rows in beam search).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, StaticCache
from transformers.pytorch_utils import Conv1D

from memwrite.errors import ConfigError
from memwrite.protocols import Delta, Gate, LayerAdapter, ProjectionDeltas

KEYWORD = "memwrite_corrections"

#: The projection modules of attention and of the MLP, by the names that families give them: module -> what it computes,
#: in the order in which it packs it.
_ATTENTION = (
    {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"},
    {"c_attn": "q k v", "c_proj": "o"},
    {"qkv_proj": "q k v", "o_proj": "o"},
)
_MLP = (
    {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"},
    {"gate_up_proj": "gate up", "down_proj": "down"},
    {"up_proj": "up", "down_proj": "down"},
    {"c_fc": "up", "c_proj": "down"},
)

# Live from a layer's entry to its exit; context variables, so threads never share them. Not all families hand keywords
# on from a layer to its attention.
_corrections: ContextVar[Mapping[int, LayerAdapter] | None] = ContextVar(
    "memwrite_corrections", default=None
)
# Lives from an attention module's entry to its layer's exit; a context variable, so threads never share it.
_deltas: ContextVar[ProjectionDeltas | None] = ContextVar("memwrite_deltas", default=None)


class _CarriesAdapters(Cache):  # type: ignore[misc]
    """A key-value cache that carries adapters and a bias along, reordering their rows with its own.

    Attributes:
        corrections: layer -> adapter.
        bias: (B, L, Hkv, M), added to the attention logits of the first M slots.
        bias_groups: query heads of each key head.
    """

    corrections: Mapping[int, LayerAdapter] | None = None
    bias: Tensor | None = None
    bias_groups: int = 1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._reorder(indices)

    def _reorder(self, index: Tensor) -> None:
        if self.corrections:
            self.corrections = {layer: c.rows(index) for layer, c in self.corrections.items()}
        if self.bias is not None:
            self.bias = self.bias[index.to(self.bias.device)]


class AdapterCache(_CarriesAdapters, DynamicCache):  # type: ignore[misc]
    """A cache that grows with the text."""


class AdapterStaticCache(_CarriesAdapters, StaticCache):  # type: ignore[misc]
    """A cache whose size is fixed when it is made."""


class Projections:
    """The projections of every layer of a transformers causal language model.

    Args:
        model: the language model.
        widths: output widths of q, k, v and o, which packed modules do not tell.

    Raises:
        ConfigError: the model is built in a way we do not know.
    """

    def __init__(self, model: nn.Module, widths: Mapping[str, int]) -> None:
        self._layers: list[dict[str, tuple[nn.Module, tuple[str, ...]]]] = []
        self._widths = widths
        for block, attention in zip(blocks(model), attention_modules(model), strict=True):
            packed = _packed(attention, _ATTENTION)
            if not packed:
                raise ConfigError(f"the projections of {type(attention).__name__} were not found")
            mlp = getattr(block, "mlp", None)
            if isinstance(mlp, nn.Module):
                packed += _packed(mlp, _MLP)
            self._layers.append(
                {name: (module, names) for module, names in packed for name in names}
            )

    def weight(self, layer: int, name: str) -> Tensor:
        """Return the weight (output width, input width) of one projection, packed or not.

        Raises:
            ConfigError: the model has no such projection.
        """
        if name not in self._layers[layer]:
            known = ", ".join(self._layers[layer])
            raise ConfigError(
                f"layer {layer} of this model has no projection '{name}' that can be changed (known: {known})"
            )
        module, names = self._layers[layer][name]
        weight: Any = module.weight
        if isinstance(module, Conv1D):
            weight = weight.T
        split: Tensor = torch.split(weight, self.sizes(weight.shape[0], names))[names.index(name)]
        return split

    def sizes(self, total: int, names: Sequence[str]) -> list[int]:
        """Return the output widths of what a module of `total` outputs packs."""
        if set(names) <= self._widths.keys():
            return [self._widths[name] for name in names]
        return [total // len(names)] * len(names)

    def names(self, layer: int) -> frozenset[str]:
        """Return the names of the projections of one layer."""
        return frozenset(self._layers[layer])

    def install_hooks(self, model: nn.Module) -> None:
        """Make every layer of `model` take adapters and a bias."""
        modules = zip(blocks(model), attention_modules(model), self._layers, strict=True)
        for layer, (block, attention, projections) in enumerate(modules):
            known = frozenset(projections)
            parameters = inspect.signature(block.forward).parameters.values()
            hands_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
            block.register_forward_pre_hook(partial(_receive, hands_on), with_kwargs=True)
            attention.register_forward_pre_hook(
                partial(_enter, layer, known, block), with_kwargs=True
            )
            block.register_forward_hook(_leave, always_call=True)
            for module, names in {id(m): (m, n) for m, n in projections.values()}.values():
                module.register_forward_hook(partial(_change, names, self))


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """Return the self-attention module of every layer of a transformers causal LM, first layer first.

    Raises:
        ConfigError: the model is built in a way we do not know.
    """
    candidates = [
        getattr(block, "self_attn", None) or getattr(block, "attn", None) for block in blocks(model)
    ]
    modules = [module for module in candidates if isinstance(module, nn.Module)]
    if not modules or len(modules) != len(candidates):
        raise ConfigError(f"the attention layers of {type(model).__name__} were not found")
    return modules


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """Return every linear layer within the blocks: weights (out, in), a `Conv1D`'s (in, out)."""
    return [m for b in blocks(model) for m in b.modules() if isinstance(m, (nn.Linear, Conv1D))]


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the decoder layers of a transformers causal LM."""
    base = getattr(model, "base_model", model)
    return getattr(base, "layers", None) or getattr(base, "h", None) or ()


def _packed(
    module: nn.Module, families: Sequence[Mapping[str, str]]
) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """Return each projection module with the names of what it computes; [] where the names are none that we know."""
    for names in families:
        if all(isinstance(getattr(module, name, None), nn.Module) for name in names):
            return [(getattr(module, name), tuple(what.split())) for name, what in names.items()]
    return []


def _full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Let memories compute in the dtype of their parameters, whatever autocast makes of the model."""
    kind = like.device.type
    # Entering it costs a decoded token more than the whole reading of a small state.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _receive(
    hands_on: bool, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if torch.compiler.is_compiling():
        return args, kwargs
    # It stays among the keywords where it can, since gradient checkpointing replays the layer without this hook.
    _corrections.set(kwargs.get(KEYWORD) if hands_on else kwargs.pop(KEYWORD, None))
    return args, kwargs


def _enter(
    layer: int,
    known: frozenset[str],
    block: nn.Module,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cache = kwargs.get("past_key_values")
    corrections = kwargs.pop(KEYWORD, None) or getattr(cache, "corrections", None)
    bias = getattr(cache, "bias", None)
    if torch.compiler.is_compiling():
        if corrections or bias is not None:
            raise ConfigError("changes of projections cannot be compiled: leave out compile")
        return args, kwargs
    if not corrections:
        corrections = _corrections.get()
        if corrections and block.training and getattr(block, "gradient_checkpointing", False):
            raise ConfigError(
                "the layers of this family lose changes of projections under gradient checkpointing: turn it off"
            )
    adapter = (corrections or {}).get(layer)
    hidden = args[0] if args else kwargs["hidden_states"]
    with _full_precision(hidden):
        deltas = adapter(hidden) if adapter else None
    if deltas and not deltas.keys() <= known:
        unknown = ", ".join(sorted(deltas.keys() - known))
        raise ConfigError(
            f"layer {layer} of this model has no projection {unknown} that can be changed (known: "
            f"{', '.join(sorted(known))})"
        )
    _deltas.set(deltas)
    if bias is not None:
        if "attention_mask" not in kwargs:
            raise ConfigError("this model's attention does not take a bias on its slots")
        kwargs["attention_mask"] = _biased(
            kwargs["attention_mask"], bias[:, layer], hidden, cache, layer
        )
    return args, kwargs


def _biased(mask: Tensor | None, bias: Tensor, hidden: Tensor, cache: Any, layer: int) -> Tensor:
    """Add `bias` (B, Hkv, M) to a mask: (B, Hkv · G, T, S) in the dtype of `hidden`, whatever form the mask has."""
    length = hidden.shape[1]
    low = torch.finfo(hidden.dtype).min
    slots = cache.get_seq_length(layer) + length if mask is None else mask.shape[-1]
    if mask is None:
        mask = torch.ones(length, slots, dtype=torch.bool, device=hidden.device)
        mask = mask.tril(slots - length)[None, None]
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, low)
    bias = F.pad(bias, (0, slots - bias.shape[-1]))[:, :, None]
    heads = cache.bias_groups
    # The lowest number twice would be -inf, and a row of nothing but -inf is NaN.
    total = (mask.to(bias.dtype) + bias.clamp(min=low / 2)).clamp(min=low / 2)
    total = torch.where(torch.isneginf(bias) | (mask <= low / 2), low, total)
    return total.to(hidden.dtype).repeat_interleave(heads, 1)


def _leave(_module: nn.Module, _args: Any, _output: Any) -> None:
    if not torch.compiler.is_compiling():
        _corrections.set(None)
        _deltas.set(None)


def _change(
    names: Sequence[str],
    projections: Projections,
    _module: nn.Module,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor | None:
    deltas = None if torch.compiler.is_compiling() else _deltas.get()
    if not deltas or not any(name in deltas for name in names):
        return None
    parts = torch.split(output, projections.sizes(output.shape[-1], names), -1)

    def value(delta: Delta) -> Tensor:
        with _full_precision(output):
            return delta if isinstance(delta, Tensor) else delta(args[0])

    def changed(part: Tensor, delta: Delta | Gate | None) -> Tensor:
        if delta is None:
            return part
        if not isinstance(delta, Gate):
            return part + value(delta).to(part.dtype)
        part = part * value(delta.factor).to(part.dtype)
        return part if delta.delta is None else part + value(delta.delta).to(part.dtype)

    new = [changed(part, deltas.get(name)) for name, part in zip(names, parts, strict=True)]
    return new[0] if len(new) == 1 else torch.cat(new, dim=-1)
