"""The table of all plugins of one role, by name."""

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
class PluginFailure:
    """Why a plugin, or one name, cannot be used."""

    owner: Owner
    error: PluginError
    traceback: str = ""


class Named(Protocol):
    """Anything with a name: what a table contains."""

    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=Named)


@dataclass
class PluginTable(Generic[P]):
    """All plugins of one role, by name. A name with several owners is a conflict."""

    role: str
    entries: dict[str, list[tuple[P, Owner]]] = field(default_factory=dict)

    def add(self, plugin: P, owner: Owner) -> None:
        """Add `plugin`, beside any others of its name."""
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
        providers = " and ".join(str(owner) for _, owner in owners)
        return PluginConflict(f"the {self.role} '{name}' is provided by {providers}: uninstall one")

    def get(self, name: str, failures: Iterable[PluginFailure]) -> P:
        """Return the plugin of that name.

        Raises:
            PluginConflict: two distributions provide it.
            PluginBroken, PluginApiMismatch: it belongs to a plugin that could not be loaded.
            PluginNotFound: no plugin provides it.
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
