"""Keys without their positions, and values, of all that was read."""

from __future__ import annotations

import torch

from memwrite.protocols import BackboneInfo
from memwrite.state import StateKind, StateSpec

NEIGHBOURS = StateKind(
    "neighbours",
    {"keys": "L Hkv M Dh", "values": "L Hkv M Dh", "mask": "M", "special": "M"},
    dtypes={"mask": torch.bool, "special": torch.bool},
    summary="keys as at position 0, and values, of every token that was read, in order; it grows with the text",
)


def spec_of(info: BackboneInfo, slots: int) -> StateSpec:
    """Return the spec of a state of so many slots."""
    shape = (info.layers, info.kv_heads, slots, info.head_dim)
    return StateSpec(
        NEIGHBOURS.name,
        {"keys": shape, "values": shape, "mask": (slots,), "special": (slots,)},
        layers=tuple(range(info.layers)),
        dtype=info.state_dtype,
        bounded=False,
    )
