"""The plugins of this process, discovered so that one broken plugin never stops the others."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pluggy

import memwrite
from memwrite.errors import (
    IncompatiblePair,
    PluginApiMismatch,
    PluginBroken,
    PluginConflict,
    PluginError,
)
from memwrite.plugins.checks import check_declaration
from memwrite.plugins.declarations import ImporterPlugin, ReaderPlugin, TaskPlugin, WriterPlugin
from memwrite.plugins.hooks import GROUP, Hooks
from memwrite.plugins.pairs import reads_kind
from memwrite.plugins.table import Named, Owner, PluginFailure, PluginTable
from memwrite.state import KINDS, StateKind
from memwrite.utils.entry_points import ALLOWLIST, distribution, installed


@dataclass
class Registry:
    """All plugins that were discovered.

    Attributes:
        writers, readers, importers, tasks, kinds, laws: a table for each role.
        broken: plugins that could not be loaded.
        blocked: plugins that are installed but not on the allowlist, so that they were never imported.
    """

    writers: PluginTable[WriterPlugin] = field(default_factory=lambda: PluginTable("writer"))
    readers: PluginTable[ReaderPlugin] = field(default_factory=lambda: PluginTable("reader"))
    importers: PluginTable[ImporterPlugin] = field(default_factory=lambda: PluginTable("importer"))
    tasks: PluginTable[TaskPlugin] = field(default_factory=lambda: PluginTable("task"))
    kinds: PluginTable[StateKind] = field(default_factory=lambda: PluginTable("kind"))
    laws: PluginTable[Named] = field(default_factory=lambda: PluginTable("law"))
    broken: list[PluginFailure] = field(default_factory=list)
    blocked: list[PluginFailure] = field(default_factory=list)

    @property
    def tables(self) -> tuple[PluginTable[Any], ...]:
        """Return the table of each role."""
        return (self.writers, self.readers, self.importers, self.tasks, self.kinds, self.laws)

    @property
    def failures(self) -> list[PluginFailure]:
        """Return the plugins that could not be loaded, and the names that are provided twice."""
        return [*self.broken, *(failure for table in self.tables for failure in table.conflicts())]

    def writer(self, name: str) -> WriterPlugin:
        """Return the writer of that name; raises as `PluginTable.get`."""
        return self.writers.get(name, [*self.broken, *self.blocked])

    def reader(self, name: str) -> ReaderPlugin:
        """Return the reader of that name; raises as `PluginTable.get`."""
        return self.readers.get(name, [*self.broken, *self.blocked])

    def importer(self, name: str) -> ImporterPlugin:
        """Return the importer of that name; raises as `PluginTable.get`."""
        return self.importers.get(name, [*self.broken, *self.blocked])

    def task(self, name: str) -> TaskPlugin:
        """Return the task of that name; raises as `PluginTable.get`."""
        return self.tasks.get(name, [*self.broken, *self.blocked])

    def pairs(self) -> list[tuple[WriterPlugin, ReaderPlugin]]:
        """Return every writer with every reader that reads its kind of state."""
        return [
            (writer, reader)
            for writer in self.writers.all()
            for reader in self.readers.all()
            if reads_kind(reader.accepts, writer.emits)
        ]

    def reader_for(self, writer: str) -> ReaderPlugin:
        """Return the reader to take where none is named: the first, by name, that names the writer's kind of state itself.

        Raises:
            PluginError: there is no such writer.
            IncompatiblePair: no installed reader reads its states.
        """
        return self.reader_of(self.writer(writer).emits, f" of writer '{writer}'")

    def reader_of(self, kind: str, whose: str = "") -> ReaderPlugin:
        """Return the reader to take for states of a kind; `whose` they are goes into the message.

        Raises:
            IncompatiblePair: no installed reader reads them.
        """
        readers = [r for r in self.readers.all() if reads_kind(r.accepts, kind)]
        if not readers:
            raise IncompatiblePair(
                f"no installed reader reads the '{kind}' states{whose}: see `memwrite plugins`"
            )
        return min(readers, key=lambda reader: (kind not in reader.accepts, reader.name))

    def add(self, owner: Owner, load: Callable[[], object]) -> None:
        """Load a hook module and take what it declares, guarding the import and each hook call on its own.

        pluggy checks the hooks' names and arguments, but the hooks are called one by one: in a call of all
        implementations, one that raises would stop the others.
        """
        try:
            manager = pluggy.PluginManager(GROUP)
            manager.add_hookspecs(Hooks)
            manager.register(load())
            manager.check_pending()
        except BaseException as error:
            self.broken.append(_failure(owner, "could not be imported", error))
            return
        # Kinds first: they decide what a writer's spec may be.
        for hook, role, table in (
            (manager.hook.memwrite_kinds, StateKind, self.kinds),
            (manager.hook.memwrite_writers, WriterPlugin, self.writers),
            (manager.hook.memwrite_readers, ReaderPlugin, self.readers),
            (manager.hook.memwrite_importers, ImporterPlugin, self.importers),
            (manager.hook.memwrite_tasks, TaskPlugin, self.tasks),
            (manager.hook.memwrite_laws, object, self.laws),
        ):
            for implementation in hook.get_hookimpls():
                try:
                    declared: list[Any] = list(implementation.function())  # type: ignore[call-overload]
                    for plugin in declared:
                        check_declaration(plugin, role)
                except BaseException as error:
                    self.broken.append(_failure(owner, f"failed in {hook.name}()", error))
                    continue
                for plugin in declared:
                    table.add(plugin, owner)


@cache
def registry() -> Registry:
    """Return the registry of this process: built-in plugins, then every installed entry point of the group "memwrite".

    `memwrite.utils.entry_points` decides which of these may be imported. `MEMWRITE_STRICT=1` raises at the first failure.
    """
    sources: list[tuple[Owner, Callable[[], object]]] = [
        (
            Owner(GROUP, memwrite.__version__, name),
            partial(importlib.import_module, f"memwrite.plugins.builtin.{name}"),
        )
        for name in ("readers", "baselines", "tasks")
    ]
    allowed, blocked = installed(GROUP)
    sources += [(_owner(point), point.load) for point in allowed]
    discovered = discover(sources)
    discovered.blocked = [_blocked(_owner(point)) for point in blocked]
    _publish_kinds(discovered)
    if os.environ.get("MEMWRITE_STRICT") == "1":
        for failure in discovered.failures:
            raise failure.error
    return discovered


def discover(sources: Iterable[tuple[Owner, Callable[[], object]]]) -> Registry:
    """Make a registry of sources, each an owner and a function that loads its hook module."""
    discovered = Registry()
    for owner, load in sources:
        discovered.add(owner, load)
    return discovered


def register(module: ModuleType) -> None:
    """Add the plugins of a module that no installed package declares, as in a notebook or a single file.

    Raises:
        PluginError: a hook fails, or a name is taken.
    """
    added = Registry()
    added.add(Owner(module.__name__, "unpackaged", module.__name__), lambda: module)
    for failure in added.failures:
        raise failure.error
    installed_plugins = registry()
    for new, table in zip(added.tables, installed_plugins.tables, strict=True):
        for name, [(plugin, owner)] in new.entries.items():
            if any(other != plugin for other, _ in table.entries.get(name, [])):
                raise PluginConflict(
                    f"the {table.role} '{name}' is installed already: give yours another name"
                )
            if name not in table.entries:
                table.add(plugin, owner)
    _publish_kinds(installed_plugins)


def _publish_kinds(discovered: Registry) -> None:
    """Put the declared kinds into `KINDS`, so that specs are checked against them."""
    for [(kind, owner), *others] in list(discovered.kinds.entries.values()):
        if kind.name in KINDS and KINDS[kind.name] != kind:
            error = PluginConflict(f"the kind '{kind.name}' of {owner} is one of memwrite's own")
            discovered.broken.append(PluginFailure(owner, error))
        elif not others:
            KINDS[kind.name] = kind


def _blocked(owner: Owner) -> PluginFailure:
    return PluginFailure(
        owner, PluginError(f"the plugin {owner} is not one that {ALLOWLIST} allows")
    )


def _owner(point: EntryPoint) -> Owner:
    return Owner(distribution(point), point.dist.version if point.dist else "?", point.name)


def _failure(owner: Owner, what: str, error: BaseException) -> PluginFailure:
    if isinstance(error, KeyboardInterrupt):
        raise error
    kind = PluginApiMismatch if isinstance(error, PluginApiMismatch) else PluginBroken
    try:
        reason = str(error)
    except Exception:
        reason = ""
    sentence = f"the plugin {owner} {what}: {type(error).__name__}: {reason or 'no message'}"
    return PluginFailure(owner, kind(sentence), "".join(traceback.format_exception(error)))
