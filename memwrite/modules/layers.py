"""The layers of a backbone that a mechanism works at."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.errors import ConfigError
from memwrite.protocols import BackboneInfo


def chosen_layers(named: Sequence[int], info: BackboneInfo) -> tuple[int, ...]:
    """Return the attention layers that a writer's parameter `layers` names, in order; all of them if it names none.

    Raises:
        ConfigError: the backbone has no such layer, or none at all.
    """
    layers = tuple(sorted(named)) or tuple(range(info.layers))
    if not info.layers:
        raise ConfigError(
            f"this {info.architecture} model has no attention layers to write from: use another model, or a writer of the "
            f"states of recurrent layers"
        )
    if layers[-1] >= info.layers:
        raise ConfigError(
            f"writer.params.layers names layer {layers[-1]}, but the backbone has layers 0 to {info.layers - 1}"
        )
    return layers
