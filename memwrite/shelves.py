"""Plugins of one role by their names, with those they came from and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from memwrite.errors import PluginConflict, PluginError, PluginNotFound, did_you_mean


@dataclass(frozen=True)
class Owner:
    """The distribution a plugin came with, and the name of its entry point."""

    distribution: str
    version: str
    entry_point: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Fault:
    """Why a plugin, or one name, cannot be used."""

    owner: Owner
    error: PluginError
    traceback: str = ""


class Named(Protocol):
    """What a shelf holds."""

    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=Named)


@dataclass
class Shelf(Generic[P]):
    """All plugins of one role, by name; a name on it may have several owners, which is a conflict."""

    role: str
    entries: dict[str, list[tuple[P, Owner]]] = field(default_factory=dict)

    def add(self, plugin: P, owner: Owner) -> None:
        """Put `plugin` beside whatever has its name already."""
        self.entries.setdefault(plugin.name, []).append((plugin, owner))

    def conflicts(self) -> list[Fault]:
        """A fault for every name provided twice."""
        return [
            Fault(owners[0][1], self._conflict(name, owners))
            for name, owners in self.entries.items()
            if len(owners) > 1
        ]

    def _conflict(self, name: str, owners: Sequence[tuple[P, Owner]]) -> PluginConflict:
        who = " and ".join(str(owner) for _, owner in owners)
        return PluginConflict(f"the {self.role} '{name}' is provided by {who}: uninstall one")

    def get(self, name: str, faults: Iterable[Fault]) -> P:
        """The plugin of that name.

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
        faults = list(faults)
        for fault in faults:
            if name in (fault.owner.entry_point, fault.owner.distribution):
                raise fault.error
        broken = "".join(f"; not loaded: {fault.error}" for fault in faults)
        hint = did_you_mean(name, self.entries)
        raise PluginNotFound(f"no installed {self.role} is called '{name}' ({hint}{broken})")
