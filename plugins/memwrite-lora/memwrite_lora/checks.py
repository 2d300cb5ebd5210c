"""Checks that a per-layer state fits a backbone and a reader."""

from __future__ import annotations

from memwrite.errors import ContractViolation, InputError
from memwrite.protocols import BackboneInfo
from memwrite.state import MemoryState, StateSpec


def check_layers(spec: StateSpec, info: BackboneInfo) -> None:
    """Check that the first axis of every per-layer tensor stands for layers of the backbone.

    Raises:
        ContractViolation: it does not.
    """
    layers = list(spec.layers)
    if len(set(layers)) < len(layers) or not set(layers) <= set(range(info.layers)):
        raise ContractViolation(
            f"a '{spec.kind}' state is for layers {layers}, but the backbone has the layers 0 to "
            f"{info.layers - 1}, each once"
        )
    for name, tensor in spec.tensors.items():
        if tensor.per_layer and tensor.shape[:1] != (len(layers),):
            raise ContractViolation(
                f"state tensor '{name}' of shape {tensor.shape} should begin with one axis for layers, but the state is for layers {layers}"
            )


def check_state(state: MemoryState, spec: StateSpec) -> None:
    """Check that a reader built for `spec` can read `state`.

    Raises:
        InputError: it has other shapes or layers.
    """
    shapes, expected = dict(state.spec.shapes), dict(spec.shapes)
    if shapes != expected or state.spec.layers != spec.layers:
        raise InputError(
            f"the reader was built for states of shapes {expected} at layers {list(spec.layers)}, "
            f"but this one has {shapes} at layers {list(state.spec.layers)}"
        )
