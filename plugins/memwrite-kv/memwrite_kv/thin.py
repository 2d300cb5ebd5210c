"""States whose keys have fewer channels than their values, and the reader that gives them to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from memwrite.protocols import Backbone, Conditioning, KeyValues
from memwrite.state import MemoryState, StateKind, StateSpec, TensorSpec

THIN = StateKind(
    "thin-keyvalue",
    {
        "keys": "L Hkv M Dk",
        "channels": "L Hkv Dh",
        "values": "L Hkv M Dh",
        "mask": "M",
        "next_position": "",
    },
    {"bias": "L Hkv M"},
    {"channels": torch.bool, "mask": torch.bool, "next_position": torch.int64},
    summary="keys and values, of the keys only those channels that each head keeps",
)


def thin_spec(spec: StateSpec, kept: int) -> StateSpec:
    """Return the spec of states that keep so many channels of the keys of a `keyvalue` spec."""
    layers, heads, slots, width = spec.shapes["keys"]
    tensors: Mapping[str, TensorSpec | tuple[int, ...]] = {
        **spec.tensors,
        "keys": (layers, heads, slots, kept),
        "channels": (layers, heads, width),
    }
    return StateSpec(THIN.name, tensors, spec.layers, spec.dtype, spec.bounded)


def thinned(state: MemoryState, channels: Tensor, kept: int) -> MemoryState:
    """Keep of a `keyvalue` state's keys the `kept` channels of each head that are True in `channels` (B, L, Hkv, Dh)."""
    index = (~channels).to(torch.uint8).argsort(dim=-1, stable=True)[..., :kept]
    keys = state["keys"]
    keys = keys.gather(-1, index[..., None, :].expand(*keys.shape[:-1], kept))
    return MemoryState(
        thin_spec(state.spec, kept), {**state.tensors, "keys": keys, "channels": channels}
    )


def widened(state: MemoryState) -> MemoryState:
    """Return the `keyvalue` state that a thin one stands for: what its keys have lost is 0."""
    keys, channels = state["keys"], state["channels"]
    place = (channels.cumsum(-1) - 1).clamp(0, keys.shape[-1] - 1)
    place = place[..., None, :].expand(*keys.shape[:-1], channels.shape[-1])
    keys = keys.gather(-1, place).masked_fill(~channels[..., None, :], 0)
    tensors = {n: t for n, t in state.tensors.items() if n != "channels"} | {"keys": keys}
    specs = {n: spec for n, spec in state.spec.tensors.items() if n != "channels"}
    specs["keys"] = replace(specs["keys"], shape=tuple(keys.shape[1:]))
    spec = StateSpec("keyvalue", specs, state.spec.layers, state.spec.dtype, state.spec.bounded)
    return MemoryState(spec, tensors)


@dataclass(frozen=True)
class NoParams:
    """The config of a plugin that has no parameters."""


class ThinKeyValueReader(nn.Module):
    """Lets the query attend to keys of fewer channels as to its own past; the other channels count for nothing."""

    accepts = frozenset({THIN.name})

    def __init__(self, config: NoParams, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Return the state as past keys and values of their full width."""
        wide = widened(state)
        return Conditioning(
            key_values=KeyValues(
                wide["keys"],
                wide["values"],
                wide["mask"],
                wide["next_position"],
                wide.tensors.get("bias"),
            )
        )
