"""Whether states with one tensor part per layer fit a backbone, and a reader."""

from __future__ import annotations

from memwrite.errors import ContractViolation, InputError
from memwrite.protocols import BackboneInfo
from memwrite.state import MemoryState, StateSpec


def check_layers(spec: StateSpec, info: BackboneInfo) -> None:
    """Every tensor's first axis must stand for layers of the backbone.

    Raises:
        ContractViolation: it does not.
    """
    layers = list(spec.layers)
    if len(set(layers)) < len(layers) or not set(layers) <= set(range(info.layers)):
        raise ContractViolation(
            f"a '{spec.kind}' state is for layers {layers}, but the backbone has the layers 0 to "
            f"{info.layers - 1}, each once"
        )
    for name, shape in spec.shapes.items():
        if shape[0] != len(layers):
            raise ContractViolation(
                f"state tensor '{name}' is for {shape[0]} layers, but the state is for layers {layers}"
            )


def check_state(state: MemoryState, spec: StateSpec) -> None:
    """A reader built for `spec` must be able to read `state`.

    Raises:
        InputError: it has other shapes or layers.
    """
    shapes, expected = dict(state.spec.shapes), dict(spec.shapes)
    if shapes != expected or state.spec.layers != spec.layers:
        raise InputError(
            f"the reader was built for states of shapes {expected} at layers {list(spec.layers)}, "
            f"but this one has {shapes} at layers {list(state.spec.layers)}"
        )
