"""What the states of a writer are worth that nobody has trained."""

from __future__ import annotations

from contextlib import suppress

from memwrite.config import Config, part_config
from memwrite.errors import PluginError
from memwrite.plugins.registry import registry


def untrained_caveat(config: Config, learns: bool) -> str:
    """Return a sentence about the states of an untrained writer; "" where they are worth as much as trained ones.

    Args:
        config: of the memory.
        learns: whether the writer has parameters to be trained, as far as is known.
    """
    name, worth = config.writer.name, "its states mean nothing to this model"
    with suppress(PluginError):
        plugin = registry().writer(name)
        if plugin.untrained is not None:
            params = part_config(plugin.config, config.writer.params, "writer.params")
            worth = plugin.untrained(params)
        elif not learns:
            worth = ""
    return worth and f"writer '{name}' has not been trained: {worth}"
