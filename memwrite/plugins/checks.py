"""Checks of what plugins declare."""

from __future__ import annotations

import dataclasses
from collections.abc import Set

from memwrite.errors import PluginApiMismatch, PluginBroken
from memwrite.plugins.declarations import (
    API,
    Capabilities,
    ImporterPlugin,
    Plugin,
    ReaderPlugin,
    TaskPlugin,
    WriterPlugin,
)


def check_declaration(plugin: object, role: type) -> None:
    """Refuse a declaration that cannot be used.

    Raises:
        PluginBroken, PluginApiMismatch: it cannot.
    """
    if not isinstance(plugin, role):
        raise PluginBroken(f"the hook returned a {type(plugin).__name__}, not a {role.__name__}")
    name = getattr(plugin, "name", None)
    if not (isinstance(name, str) and name):
        raise PluginBroken(f"the name of a plugin must be a text that is not empty, got {name!r}")
    if not isinstance(plugin, Plugin):
        return
    if plugin.api != API:
        raise PluginApiMismatch(
            f"'{plugin.name}' was built for plugin API {plugin.api}, this memwrite has {API}"
        )
    if isinstance(plugin, ImporterPlugin):
        if not callable(plugin.load):
            raise PluginBroken(f"the load of '{plugin.name}' must be a function")
        return
    assert isinstance(plugin, (WriterPlugin, ReaderPlugin, TaskPlugin))
    if not (isinstance(plugin.config, type) and dataclasses.is_dataclass(plugin.config)):
        raise PluginBroken(f"the config of '{plugin.name}' must be a dataclass type")
    if not callable(plugin.build):
        raise PluginBroken(f"the build of '{plugin.name}' must be a function")
    if isinstance(plugin, ReaderPlugin) and not isinstance(plugin.accepts, Set):
        raise PluginBroken(
            f"'{plugin.name}' accepts {plugin.accepts!r}, which is not a set of kinds"
        )
    parameters = {f.name for f in dataclasses.fields(plugin.config)}
    for attribute in ("steps", "max_steps", "slots", "examples"):
        name = getattr(plugin, attribute, None)
        if name is not None and name not in parameters:
            raise PluginBroken(
                f"'{plugin.name}' declares {attribute}='{name}', but its config has no such parameter"
            )
    if isinstance(plugin, WriterPlugin):
        _check_writer(plugin)


def _check_writer(plugin: WriterPlugin) -> None:
    if not isinstance(plugin.emits, str):
        raise PluginBroken(f"'{plugin.name}' emits {plugin.emits!r}, which is not a kind of state")
    if not isinstance(plugin.capabilities, Capabilities):
        raise PluginBroken(
            f"the capabilities of '{plugin.name}' are {plugin.capabilities!r}: declare Capabilities(streaming=True, ...)"
        )
