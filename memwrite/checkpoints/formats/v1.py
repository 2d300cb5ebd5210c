"""Format 1 (memwrite 0.1): a spec holds shapes alone; the kind says which tensors have another dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memwrite.checkpoints.formats.v2 import StoredSpec, check_sizes, torch_dtype
from memwrite.config import part_config, to_dict
from memwrite.errors import ConfigError
from memwrite.plugins.registry import registry
from memwrite.state import StateSpec


@dataclass(frozen=True)
class _StoredSpec:
    kind: str
    shapes: dict[str, list[int]]
    layers: list[int]
    dtype: str
    bounded: bool


def upgrade(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header of format 1 as one of format 2.

    Raises:
        ConfigError, ContractViolation: its spec is none.
    """
    if not isinstance(header.get("spec"), Mapping):
        raise ConfigError("it has no spec")
    old = part_config(_StoredSpec, header["spec"], "header.spec")
    check_sizes([*old.layers, *(size for shape in old.shapes.values() for size in shape)])
    registry()  # makes the kinds of plugins known, which say what their tensors are
    shapes = {name: tuple(shape) for name, shape in old.shapes.items()}
    spec = StateSpec(old.kind, shapes, tuple(old.layers), torch_dtype(old.dtype), old.bounded)
    return {**header, "spec": to_dict(StoredSpec.of(spec)), "format": 2, "requires": 2}
