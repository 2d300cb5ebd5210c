"""The plugins of this process by role and name, and guarded discovery: one broken plugin never stops the others."""

from __future__ import annotations

import dataclasses
import importlib
import os
import traceback
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import pluggy

import memwrite
from memwrite.errors import (
    IncompatiblePair,
    PluginApiMismatch,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginNotFound,
    did_you_mean,
)
from memwrite.plugins.declarations import (
    API,
    GROUP,
    Capabilities,
    Hooks,
    ImporterPlugin,
    Plugin,
    ReaderPlugin,
    TaskPlugin,
    WriterPlugin,
)
from memwrite.state import KINDS, StateKind
from memwrite.utils.entry_points import ALLOWLIST, distribution, installed

#: In a reader's `accepts`: every kind of state that has a recall.
RECALL = "recall"


@dataclass(frozen=True)
class Owner:
    """The distribution a plugin came with, and the name of its entry point."""

    distribution: str
    version: str
    entry_point: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class PluginFailure:
    """Why a plugin, or one name, cannot be used."""

    owner: Owner
    error: PluginError
    traceback: str = ""


class Named(Protocol):
    """What a table holds."""

    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=Named)


@dataclass
class PluginTable(Generic[P]):
    """All plugins of one role, by name; a name in it may have several owners, which is a conflict."""

    role: str
    entries: dict[str, list[tuple[P, Owner]]] = field(default_factory=dict)

    def add(self, plugin: P, owner: Owner) -> None:
        """Put `plugin` beside whatever has its name already."""
        self.entries.setdefault(plugin.name, []).append((plugin, owner))

    def all(self) -> list[P]:
        """Return the plugin of every name; of a name with several owners, the first."""
        return [plugin for [(plugin, _), *_] in self.entries.values()]

    def conflicts(self) -> list[PluginFailure]:
        """Return a failure for every name that is provided twice."""
        return [
            PluginFailure(owners[0][1], self._conflict(name, owners))
            for name, owners in self.entries.items()
            if len(owners) > 1
        ]

    def _conflict(self, name: str, owners: Sequence[tuple[P, Owner]]) -> PluginConflict:
        who = " and ".join(str(owner) for _, owner in owners)
        return PluginConflict(f"the {self.role} '{name}' is provided by {who}: uninstall one")

    def get(self, name: str, failures: Iterable[PluginFailure]) -> P:
        """Return the plugin of that name.

        Raises:
            PluginConflict: two distributions provide it.
            PluginBroken, PluginApiMismatch: it belongs to a plugin that could not be loaded.
            PluginNotFound: nobody provides it.
        """
        owners = self.entries.get(name)
        if owners and len(owners) > 1:
            raise self._conflict(name, owners)
        if owners:
            return owners[0][0]
        failures = list(failures)
        for failure in failures:
            if name in (failure.owner.entry_point, failure.owner.distribution):
                raise failure.error
        broken = "".join(f"; not loaded: {failure.error}" for failure in failures)
        hint = did_you_mean(name, self.entries)
        raise PluginNotFound(f"no installed {self.role} is called '{name}' ({hint}{broken})")


@dataclass
class Registry:
    """Everything that was discovered.

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
        """The table of each role."""
        return (self.writers, self.readers, self.importers, self.tasks, self.kinds, self.laws)

    @property
    def failures(self) -> list[PluginFailure]:
        """Plugins that could not be loaded, and names that are provided twice."""
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
        kind = self.writer(writer).emits
        readers = [r for r in self.readers.all() if reads_kind(r.accepts, kind)]
        if not readers:
            raise IncompatiblePair(
                f"no installed reader reads the '{kind}' states of writer '{writer}': see `memwrite plugins`"
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
                        _check(plugin, role)
                except BaseException as error:
                    self.broken.append(_failure(owner, f"failed in {hook.name}()", error))
                    continue
                for plugin in declared:
                    table.add(plugin, owner)


@cache
def registry() -> Registry:
    """Return the registry of this process: built-ins, then every installed entry point of the group "memwrite".

    Which of these may be imported, `memwrite.utils.entry_points` says; `MEMWRITE_STRICT=1` raises at the first failure.
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
    """Make a registry of each (owner, loader of its hook module)."""
    discovered = Registry()
    for owner, load in sources:
        discovered.add(owner, load)
    return discovered


def register(module: ModuleType) -> None:
    """Add the plugins of a module that no installed package declares, as in a notebook or a single file.

    Raises:
        PluginError: a hook fails, or a name is taken.
    """
    own = Registry()
    own.add(Owner(module.__name__, "unpackaged", module.__name__), lambda: module)
    for failure in own.failures:
        raise failure.error
    here = registry()
    for new, table in zip(own.tables, here.tables, strict=True):
        for name, [(plugin, owner)] in new.entries.items():
            if any(known != plugin for known, _ in table.entries.get(name, [])):
                raise PluginConflict(f"the {table.role} '{name}' is installed already")
            if name not in table.entries:
                table.add(plugin, owner)
    _publish_kinds(here)


def _publish_kinds(discovered: Registry) -> None:
    """Hold specs to the kinds that were declared."""
    for [(kind, owner), *others] in list(discovered.kinds.entries.values()):
        if kind.name in KINDS and KINDS[kind.name] != kind:
            error = PluginConflict(f"the kind '{kind.name}' of {owner} is one of memwrite's own")
            discovered.broken.append(PluginFailure(owner, error))
        elif not others:
            KINDS[kind.name] = kind


def reads_kind(accepts: Set[str], kind: str) -> bool:
    """Say whether a reader that accepts these reads states of that kind."""
    declared = KINDS.get(kind)
    recalls = declared is not None and declared.recall is not None
    return kind in accepts or (RECALL in accepts and recalls)


def kinds_read(accepts: Set[str]) -> list[str]:
    """Return the declared kinds that a reader reads which accepts these, and those that it names itself."""
    return sorted({kind for kind in KINDS if reads_kind(accepts, kind)} | (accepts - {RECALL}))


def check_pair(writer: str, kind: str, reader: str, accepts: Set[str]) -> None:
    """Refuse a reader that does not read what the writer emits.

    Raises:
        IncompatiblePair: it does not.
    """
    if not reads_kind(accepts, kind):
        raise IncompatiblePair(
            f"reader '{reader}' reads {' or '.join(kinds_read(accepts))} states, but writer '{writer}' emits "
            f"'{kind}' states: see the pairs in `memwrite plugins`"
        )


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


def _check(plugin: object, role: type) -> None:
    """Refuse a declaration that cannot be used.

    Raises:
        PluginBroken, PluginApiMismatch: it cannot.
    """
    if not isinstance(plugin, role):
        raise PluginBroken(f"the hook returned a {type(plugin).__name__}, not a {role.__name__}")
    name = getattr(plugin, "name", None)
    if not (isinstance(name, str) and name):
        raise PluginBroken(f"the name {name!r} must be a word")
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
    known = {f.name for f in dataclasses.fields(plugin.config)}
    for attribute in ("steps", "max_steps", "slots", "examples"):
        what = getattr(plugin, attribute, None)
        if what is not None and what not in known:
            raise PluginBroken(f"'{plugin.name}' names the parameter '{what}', which it has not")
    if isinstance(plugin, WriterPlugin):
        _check_writer(plugin)


def _check_writer(plugin: WriterPlugin) -> None:
    if not isinstance(plugin.emits, str):
        raise PluginBroken(f"'{plugin.name}' emits {plugin.emits!r}, which is not a kind of state")
    if not isinstance(plugin.capabilities, Capabilities):
        raise PluginBroken(
            f"the capabilities of '{plugin.name}' are {plugin.capabilities!r}: declare Capabilities(streaming=True, ...)"
        )
