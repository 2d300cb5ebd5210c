"""The kind `recurrent`: its tensors, and what a model takes of them.

Of every recurrent layer, in float32 or better: the last inputs of its short convolution, and the matrices that it updates
with every token (Gated DeltaNet, arXiv 2412.06464; Mamba 2, arXiv 2405.21060). Of every attention layer, in the model's own
dtype: keys and values, if they are kept. The model takes each in the dtype that it keeps it in itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from memwrite.errors import ConfigError, InputError
from memwrite.protocols import Backbone, KeyValues
from memwrite.state import MemoryState, StateKind, StateSpec, TensorSpec

RECURRENT = StateKind(
    "recurrent",
    {"conv": "L C K", "next_position": ""},
    {"recurrent": "L H P N", "keys": "A Hkv M Dh", "values": "A Hkv M Dh", "mask": "M"},
    {"mask": torch.bool, "next_position": torch.int64},
    summary="what a hybrid model's own layers hold, recurrent and attention; L numbers layers as the model does",
)


def spec_of(backbone: Backbone, slots: int, bounded: bool) -> StateSpec:
    """Return the spec of a model's states, with so many slots of keys and values.

    Raises:
        ConfigError: the model has no recurrent layers, or they hold states of different sizes.
    """
    info, layers = backbone.info, backbone.recurrent
    if not layers:
        raise ConfigError(
            f"'{info.architecture}' has no recurrent layers, so it keeps no state but keys and values: take a hybrid "
            f"model, or the writer full-context"
        )
    first = next(iter(layers.values()))
    if any(dict(held) != dict(first) for held in layers.values()):
        raise ConfigError(
            f"the recurrent layers of '{info.architecture}' hold states of different sizes, which is not supported"
        )
    tensors = {
        name: TensorSpec((len(layers), *_three(name, spec.shape))) for name, spec in first.items()
    }
    tensors["next_position"] = TensorSpec((), torch.int64, per_layer=False)
    if slots or (info.layers and not bounded):
        shape = (info.layers, info.kv_heads, slots, info.head_dim)
        tensors["keys"] = tensors["values"] = TensorSpec(shape, info.dtype, per_layer=False)
        tensors["mask"] = TensorSpec((slots,), torch.bool, per_layer=False)
    return StateSpec("recurrent", tensors, tuple(layers), info.state_dtype, bounded)


def past_of(state: MemoryState, backbone: Backbone) -> KeyValues:
    """Return what a model goes on from.

    Raises:
        InputError: the state is of another model.
    """
    info, held = backbone.info, backbone.recurrent
    if state.spec.layers != tuple(held):
        raise InputError(
            f"this state is of the recurrent layers {list(state.spec.layers)}, but the model has {list(held)}"
        )
    rows = state["next_position"].shape[0]
    none = state["conv"].new_zeros(rows, info.layers, info.kv_heads, 0, info.head_dim)
    mask = state.tensors.get("mask")
    return KeyValues(
        state.tensors.get("keys", none),
        state.tensors.get("values", none),
        none.new_zeros(rows, 0, dtype=torch.bool) if mask is None else mask,
        state["next_position"],
        recurrent={number: _layer(state, number, held[number]) for number in held},
    )


def tensors_of(past: KeyValues) -> dict[str, Tensor]:
    """Return the tensors of a state, those of keys and values included where there are attention layers."""
    layers = list((past.recurrent or {}).values())
    tensors = {
        name: torch.stack(
            [
                held[name].reshape(len(held[name]), *_three(name, tuple(held[name].shape[1:])))
                for held in layers
            ],
            1,
        )
        for name in layers[0]
    }
    tensors["next_position"] = past.next_position
    if past.keys.shape[1]:
        tensors |= {"keys": past.keys, "values": past.values, "mask": past.mask}
    return tensors


def _layer(state: MemoryState, number: int, held: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    index = state.spec.layers.index(number)
    found = {}
    for name, spec in held.items():
        if name not in state.tensors or prod(state.spec.shapes[name][1:]) != prod(spec.shape):
            raise InputError(f"this state's '{name}' is of another model")
        held_rows = state[name][:, index]
        found[name] = held_rows.reshape(len(held_rows), *spec.shape)
    return found


def _three(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give matrices without heads (Mamba 1) one head."""
    return (1, *shape) if name == "recurrent" and len(shape) == 2 else shape
