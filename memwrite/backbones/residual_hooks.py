"""Changes of the residual stream from outside, where it enters and leaves a decoder layer: hooks that hold no state."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from memwrite.backbones.corrections import full_precision, in_force


def install(block: nn.Module, layer: int) -> None:
    """Make a decoder layer, whose attention has this number, take what a `ResidualAdapter` does.

    To be called before any other hook takes the keywords away, and once.
    """
    block.register_forward_pre_hook(partial(_enter, layer), with_kwargs=True)
    block.register_forward_hook(partial(_leave, layer), with_kwargs=True)


def _enter(
    layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    change = _change("entering", layer, block, args, kwargs)
    if change is None:
        return None
    if args:
        return (_changed(change, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": _changed(change, kwargs["hidden_states"])}


def _leave(
    layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    change = _change("leaving", layer, block, args, kwargs)
    if change is None:
        return None
    if isinstance(output, Tensor):
        return _changed(change, output)
    return (_changed(change, output[0]), *output[1:])


def _change(
    name: str, layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if torch.compiler.is_compiling():  # what cannot be compiled is refused at the layer's attention
        return None
    return getattr(in_force(args, kwargs, block).get(layer), name, None)


def _changed(change: Any, hidden: Tensor) -> Tensor:
    with full_precision(hidden):
        changed: Tensor = change(hidden)
    return changed.to(hidden.dtype)
