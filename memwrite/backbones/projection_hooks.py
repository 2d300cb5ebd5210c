"""Changes of a model's projections from outside: hooks that are installed once and hold no state."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memwrite.backbones import residual_hooks, slot_bias
from memwrite.backbones.attention_sizes import AttentionSizes
from memwrite.backbones.cache import cache_argument
from memwrite.backbones.corrections import KEYWORD, drop_keyword, full_precision, in_force
from memwrite.backbones.decoder_layers import DecoderLayer, attention_layers, child
from memwrite.errors import ConfigError
from memwrite.protocols import Delta, Gate, ProjectionDeltas

_HOOKED = "_memwrite_hooked"

#: The projection modules of attention and of the MLP, by the names that families give them: module -> what it computes,
#: in the order in which it packs it.
_ATTENTION = (
    {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"},
    {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"},
    {"q_proj": "q", "k_proj": "k", "v_proj": "v", "dense": "o"},
    {"c_attn": "q k v", "c_proj": "o"},
    {"qkv_proj": "q k v", "o_proj": "o"},
    {"query_key_value": "q k v", "dense": "o"},
)
#: Those that pack what belongs to one key head after the other.
_BY_HEAD = frozenset({"query_key_value"})
_MLP = (
    {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"},
    {"gate_up_proj": "gate up", "down_proj": "down"},
    {"up_proj": "up", "down_proj": "down"},
    {"c_fc": "up", "c_proj": "down"},
    {"dense_h_to_4h": "up", "dense_4h_to_h": "down"},
    {"w1": "gate", "w3": "up", "w2": "down"},
    {"fc1": "up", "fc2": "down"},
)
#: What families call a layer's MLP.
_MLP_MODULES = ("mlp", "feed_forward")

# Lives from an attention module's entry to its layer's exit; a context variable, so threads never share it.
_deltas: ContextVar[ProjectionDeltas | None] = ContextVar("memwrite_deltas", default=None)


@dataclass(frozen=True)
class _Packed:
    """One projection module, and what it computes.

    Attributes:
        module: a linear layer.
        names: of what it packs, in order; "" for what nobody may change.
        widths: of each of these.
        groups: how many times the order comes again: GPT-NeoX packs q, k and v of the first head, then of the second.
    """

    module: nn.Module
    names: tuple[str, ...]
    widths: tuple[int, ...]
    groups: int

    def parts(self, outputs: Tensor) -> dict[str, Tensor]:
        """Return the parts of (..., outputs) by name."""
        if len(self.names) == 1:
            return {self.names[0]: outputs}
        sizes = [width // self.groups for width in self.widths]
        shape = (*outputs.shape[:-1], self.groups, -1)
        grouped = torch.split(outputs.reshape(shape), sizes, -1)
        return {n: part.flatten(-2) for n, part in zip(self.names, grouped, strict=True)}

    def joined(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Put parts together again."""
        if len(self.names) == 1:
            return parts[self.names[0]]
        shape = (*parts[self.names[0]].shape[:-1], self.groups, -1)
        grouped = [parts[name].reshape(shape) for name in self.names]
        return torch.cat(grouped, -1).flatten(-2)


class Projections:
    """The projections of every attention layer of a transformers causal language model, and of the MLP behind it.

    Args:
        model: the language model.
        sizes: of its attention.

    Raises:
        ConfigError: the model is built in a way we do not know.
    """

    def __init__(self, model: nn.Module, sizes: AttentionSizes) -> None:
        self._layers: list[dict[str, _Packed]] = []
        for decoder, attention in attention_layers(model):
            packed = _packed(attention, _ATTENTION, sizes)
            if not packed:
                raise ConfigError(f"the projections of {type(attention).__name__} were not found")
            mlp = child(decoder.block, _MLP_MODULES)
            if mlp is not None:
                packed += _packed(mlp, _MLP, sizes)
            self._layers.append({name: p for p in packed for name in p.names if name})

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
        packed = self._layers[layer][name]
        weight: Any = packed.module.weight
        return packed.parts(weight if isinstance(packed.module, Conv1D) else weight.T)[name].T

    def module(self, layer: int, name: str) -> nn.Module:
        """Return the module that computes one projection and nothing else.

        Raises:
            ConfigError: the model has no such module.
        """
        packed = self._layers[layer].get(name)
        if packed is None or packed.names != (name,):
            raise ConfigError(f"layer {layer} of this model has no module of its own for '{name}'")
        return packed.module

    def names(self, layer: int) -> frozenset[str]:
        """Return the names of the projections of one layer."""
        return frozenset(self._layers[layer])

    def install_hooks(self, model: nn.Module) -> None:
        """Make every layer of `model` take adapters and a bias; once, however often it is called."""
        found = zip(attention_layers(model), self._layers, strict=True)
        for layer, ((decoder, attention), projections) in enumerate(found):
            block = decoder.block
            if hasattr(block, _HOOKED):
                continue
            setattr(block, _HOOKED, True)
            residual_hooks.install(block, layer)
            parameters = inspect.signature(block.forward).parameters.values()
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
                block.register_forward_pre_hook(drop_keyword, with_kwargs=True)
            attention.register_forward_pre_hook(
                partial(_enter, layer, decoder, frozenset(projections)), with_kwargs=True
            )
            block.register_forward_hook(_leave, always_call=True)
            for packed in {id(p): p for p in projections.values()}.values():
                packed.module.register_forward_hook(partial(_change, packed))


def _packed(
    module: nn.Module, families: Sequence[Mapping[str, str]], sizes: AttentionSizes
) -> list[_Packed]:
    """Return the projection modules; [] where the names are none that we know."""
    for family in families:
        children = {name: getattr(module, name, None) for name in family}
        if all(isinstance(getattr(c, "weight", None), Tensor) for c in children.values()):
            return [_described(name, children[name], what, sizes) for name, what in family.items()]
    return []


def _described(name: str, module: Any, what: str, sizes: AttentionSizes) -> _Packed:
    names, weight = tuple(what.split()), module.weight
    total = weight.shape[1 if isinstance(module, Conv1D) else 0]
    if names == ("q", "k", "v"):
        groups = sizes.projected if name in _BY_HEAD else 1
        return _Packed(module, names, tuple(sizes.widths[n] for n in names), groups)
    if names == ("q",) and total == 2 * sizes.widths["q"]:
        # Qwen3-Next packs each head's query with a gate on what the head reads.
        return _Packed(module, ("q", ""), (total // 2, total // 2), sizes.heads)
    return _Packed(module, names, (total // len(names),) * len(names), 1)


def _enter(
    layer: int,
    decoder: DecoderLayer,
    known: frozenset[str],
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cache = kwargs.get(cache_argument(kwargs))
    adapter = in_force(args, kwargs, decoder.block).get(layer)
    kwargs.pop(KEYWORD, None)
    hidden = args[0] if args else kwargs["hidden_states"]
    slot_bias.enter(layer, decoder.number, hidden, cache, kwargs)
    if torch.compiler.is_compiling():
        return args, kwargs
    with full_precision(hidden):
        deltas = adapter(hidden) if adapter else None
    if deltas and not deltas.keys() <= known:
        unknown = ", ".join(sorted(deltas.keys() - known))
        raise ConfigError(
            f"layer {layer} of this model has no projection {unknown} that can be changed (known: "
            f"{', '.join(sorted(known))})"
        )
    _deltas.set(deltas)
    return args, kwargs


def _leave(_module: nn.Module, _args: Any, output: Any) -> None:
    if not torch.compiler.is_compiling():
        _deltas.set(None)
        slot_bias.leave(failed=output is None)


def _change(
    packed: _Packed, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor | None:
    deltas = None if torch.compiler.is_compiling() else _deltas.get()
    if not deltas or not any(name in deltas for name in packed.names):
        return None

    def value(delta: Delta) -> Tensor:
        with full_precision(output):
            return delta if isinstance(delta, Tensor) else delta(args[0])

    def changed(part: Tensor, delta: Delta | Gate | None) -> Tensor:
        if delta is None:
            return part
        if not isinstance(delta, Gate):
            return part + value(delta).to(part.dtype)
        part = part * value(delta.factor).to(part.dtype)
        return part if delta.delta is None else part + value(delta.delta).to(part.dtype)

    return packed.joined(
        {name: changed(part, deltas.get(name)) for name, part in packed.parts(output).items()}
    )
