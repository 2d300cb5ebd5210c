"""Plugin declarations, their hooks, and guarded discovery: one broken plugin never stops the others."""

from __future__ import annotations

import dataclasses
import importlib
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import pluggy

import memwrite
from memwrite.errors import PluginApiMismatch, PluginBroken, PluginError
from memwrite.importing import Imported
from memwrite.installed import ALLOWED, distribution, installed
from memwrite.protocols import Backbone, Reader, Writer
from memwrite.shelves import Fault, Owner, Shelf
from memwrite.state import StateSpec
from memwrite.tasks.base import Task
from memwrite.tokenizer import Codec

if TYPE_CHECKING:
    from memwrite.memory import Memory

GROUP = "memwrite"
API = 1

Capability = Literal[
    "streaming", "chunk-exact", "differentiable", "order-free", "mergeable", "online"
]

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True)
class WriterPlugin:
    """Declares a writer.

    Attributes:
        api: version of this plugin API, a literal.
        name: what configs call it.
        summary: one line for `memwrite plugins`.
        config: a module-level frozen dataclass; its `__post_init__` validates.
        build: makes the writer, an nn.Module, from a config and the backbone.
        emits: the kind of its states.
        capabilities: promises beyond those that bind everyone; each is held to by a law.
        gaps: laws of memwrite-specs that it is known to break, each with the reason.
    """

    api: Literal[1]
    name: str
    summary: str
    config: type[Any]
    build: Callable[[Any, Backbone], Writer]
    emits: str
    capabilities: frozenset[Capability] = frozenset()
    gaps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReaderPlugin:
    """Declares a reader; attributes as in `WriterPlugin`, `accepts` being the kinds of state it reads."""

    api: Literal[1]
    name: str
    summary: str
    config: type[Any]
    build: Callable[[Any, Backbone, StateSpec], Reader]
    accepts: frozenset[str]
    gaps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImporterPlugin:
    """Declares an importer of weights that others have released; attributes as in `WriterPlugin`.

    Attributes:
        load: makes a memory's config and weights of a folder and, where that is needed, of a second folder with
            the language model's configuration and tokenizer.
        save: writes a memory as such a folder; None where that cannot be done.
    """

    api: Literal[1]
    name: str
    summary: str
    load: Callable[[Path, Path | None], Imported]
    save: Callable[[Memory, Path], None] | None = None


@dataclass(frozen=True)
class TaskPlugin:
    """Declares a task to train on and to be evaluated on; attributes as in `WriterPlugin`.

    Attributes:
        build: makes the task from a config and the backbone's tokenizer.
    """

    api: Literal[1]
    name: str
    summary: str
    config: type[Any]
    build: Callable[[Any, Codec], Task]


Declaration = WriterPlugin | ReaderPlugin | ImporterPlugin | TaskPlugin


class Hooks:
    """The hooks that a plugin module may implement, each marked with `hookimpl`."""

    @hookspec
    def memwrite_writers(self) -> Sequence[WriterPlugin]:
        """The writers this distribution provides."""
        raise AssertionError("hook specifications are never called")

    @hookspec
    def memwrite_readers(self) -> Sequence[ReaderPlugin]:
        """The readers this distribution provides."""
        raise AssertionError("hook specifications are never called")

    @hookspec
    def memwrite_importers(self) -> Sequence[ImporterPlugin]:
        """The importers this distribution provides."""
        raise AssertionError("hook specifications are never called")

    @hookspec
    def memwrite_tasks(self) -> Sequence[TaskPlugin]:
        """The tasks this distribution provides."""
        raise AssertionError("hook specifications are never called")


@dataclass
class Registry:
    """Everything that was discovered; `barred` are plugins that are installed and not allowed, so never imported."""

    writers: Shelf[WriterPlugin] = field(default_factory=lambda: Shelf("writer"))
    readers: Shelf[ReaderPlugin] = field(default_factory=lambda: Shelf("reader"))
    importers: Shelf[ImporterPlugin] = field(default_factory=lambda: Shelf("importer"))
    tasks: Shelf[TaskPlugin] = field(default_factory=lambda: Shelf("task"))
    broken: list[Fault] = field(default_factory=list)
    barred: list[Fault] = field(default_factory=list)

    @property
    def shelves(self) -> tuple[Shelf[Any], ...]:
        """The shelf of each role."""
        return (self.writers, self.readers, self.importers, self.tasks)

    @property
    def faults(self) -> list[Fault]:
        """Plugins that could not be loaded, and names provided twice."""
        return [*self.broken, *(fault for shelf in self.shelves for fault in shelf.conflicts())]

    def writer(self, name: str) -> WriterPlugin:
        """The writer of that name; raises as `Shelf.get`."""
        return self.writers.get(name, [*self.broken, *self.barred])

    def reader(self, name: str) -> ReaderPlugin:
        """The reader of that name; raises as `Shelf.get`."""
        return self.readers.get(name, [*self.broken, *self.barred])

    def importer(self, name: str) -> ImporterPlugin:
        """The importer of that name; raises as `Shelf.get`."""
        return self.importers.get(name, [*self.broken, *self.barred])

    def task(self, name: str) -> TaskPlugin:
        """The task of that name; raises as `Shelf.get`."""
        return self.tasks.get(name, [*self.broken, *self.barred])

    def pairs(self) -> list[tuple[WriterPlugin, ReaderPlugin]]:
        """Every writer with every reader that accepts its kind of state."""
        return [
            (writer, reader)
            for [(writer, _), *_] in self.writers.entries.values()
            for [(reader, _), *_] in self.readers.entries.values()
            if writer.emits in reader.accepts
        ]


@cache
def registry() -> Registry:
    """The registry of this process: built-ins, then every installed entry point of the group "memwrite".

    Which of these may be imported, `memwrite.installed` says; `MEMWRITE_STRICT=1` raises at the first fault.
    """
    sources: list[tuple[Owner, Callable[[], object]]] = [
        (
            Owner(GROUP, memwrite.__version__, name),
            partial(importlib.import_module, f"memwrite.{name}"),
        )
        for name in ("readers", "baselines", "tasks.builtin")
    ]
    allowed, barred = installed(GROUP)
    sources += [(_owner(point), point.load) for point in allowed]
    found = discover(sources)
    found.barred = [_bar(_owner(point)) for point in barred]
    if os.environ.get("MEMWRITE_STRICT") == "1":
        for fault in found.faults:
            raise fault.error
    return found


def _bar(owner: Owner) -> Fault:
    return Fault(owner, PluginError(f"the plugin {owner} is not one that {ALLOWED} allows"))


def _owner(point: EntryPoint) -> Owner:
    return Owner(distribution(point), point.dist.version if point.dist else "?", point.name)


def discover(sources: Iterable[tuple[Owner, Callable[[], object]]]) -> Registry:
    """Load each (owner, loader of its hook module), guarding the import and each hook call apart."""
    found = Registry()
    for owner, load in sources:
        try:
            manager = pluggy.PluginManager(GROUP)
            manager.add_hookspecs(Hooks)
            manager.register(load())
            manager.check_pending()
        except BaseException as error:
            found.broken.append(_fault(owner, "could not be imported", error))
            continue
        for hook, role, shelf in (
            (manager.hook.memwrite_writers, WriterPlugin, found.writers),
            (manager.hook.memwrite_readers, ReaderPlugin, found.readers),
            (manager.hook.memwrite_importers, ImporterPlugin, found.importers),
            (manager.hook.memwrite_tasks, TaskPlugin, found.tasks),
        ):
            for implementation in hook.get_hookimpls():
                try:
                    declared: list[Any] = list(implementation.function())  # type: ignore[call-overload]
                    for plugin in declared:
                        _check(plugin, role)
                except BaseException as error:
                    found.broken.append(_fault(owner, f"failed in {hook.name}()", error))
                    continue
                for plugin in declared:
                    cast("Shelf[Any]", shelf).add(plugin, owner)
    return found


def _fault(owner: Owner, what: str, error: BaseException) -> Fault:
    if isinstance(error, KeyboardInterrupt):
        raise error
    kind = PluginApiMismatch if isinstance(error, PluginApiMismatch) else PluginBroken
    try:
        reason = str(error)
    except Exception:
        reason = ""
    sentence = f"the plugin {owner} {what}: {type(error).__name__}: {reason or 'no message'}"
    return Fault(owner, kind(sentence), "".join(traceback.format_exception(error)))


def _check(plugin: object, role: type[Declaration]) -> None:
    if not isinstance(plugin, role):
        raise PluginBroken(f"the hook returned a {type(plugin).__name__}, not a {role.__name__}")
    if not (isinstance(plugin.name, str) and plugin.name):
        raise PluginBroken(f"the name {plugin.name!r} must be a word")
    if plugin.api != API:
        raise PluginApiMismatch(
            f"'{plugin.name}' was built for plugin API {plugin.api}, this memwrite has {API}"
        )
    if isinstance(plugin, ImporterPlugin):
        if not callable(plugin.load):
            raise PluginBroken(f"the load of '{plugin.name}' must be a function")
        return
    if not (isinstance(plugin.config, type) and dataclasses.is_dataclass(plugin.config)):
        raise PluginBroken(f"the config of '{plugin.name}' must be a dataclass type")
    if not callable(plugin.build):
        raise PluginBroken(f"the build of '{plugin.name}' must be a function")
    if isinstance(plugin, WriterPlugin) and not isinstance(plugin.emits, str):
        raise PluginBroken(f"'{plugin.name}' emits {plugin.emits!r}, which is not a kind of state")
    if isinstance(plugin, ReaderPlugin) and not isinstance(plugin.accepts, Set):
        raise PluginBroken(
            f"'{plugin.name}' accepts {plugin.accepts!r}, which is not a set of kinds"
        )
    unknown = set(getattr(plugin, "capabilities", ())) - set(get_args(Capability))
    if unknown:
        raise PluginBroken(f"'{plugin.name}' declares unknown capabilities {sorted(unknown)}")
