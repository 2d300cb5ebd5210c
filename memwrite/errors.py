"""Every error a user can meet; each message says what happened, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MemwriteError(Exception):
    """Base of all errors that memwrite raises on purpose; the message is one line, whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class PluginError(MemwriteError):
    """A plugin is broken, missing, or not usable here."""


class PluginNotFound(PluginError):
    """No installed plugin provides the requested name."""


class PluginBroken(PluginError):
    """A plugin raised while it was imported or while its hook ran, or declared something unusable."""


class PluginConflict(PluginError):
    """Two distributions provide the same name."""


class PluginApiMismatch(PluginError):
    """A plugin was built for another version of the plugin API."""


class ConfigError(MemwriteError, ValueError):
    """A configuration key, type or value is wrong."""


class InputError(MemwriteError, ValueError):
    """A context or query cannot be used: empty, undecodable, missing or too long."""


class PositionsExceeded(InputError):
    """A sequence is longer than the positions that the model has."""


class IncompatiblePair(MemwriteError):
    """A reader does not accept the kind of state its writer emits."""


class ContractViolation(MemwriteError):
    """A plugin broke its own declaration, for instance the shapes of its StateSpec."""


class DivergenceError(MemwriteError, ArithmeticError):
    """A write, or a step of training, produced numbers that are not finite.

    Attributes:
        rows: the rows of the batch that diverged; () where they are not known.
    """

    def __init__(self, message: str, rows: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class StorageError(MemwriteError):
    """A file is missing, damaged, not ours, or was written for another backbone."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return the end of an error message: the option nearest to `name` if one is near, and all options."""
    names = sorted(options)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(names) or 'none'}"
