"""Imports of packages that only some commands need, see the extras in pyproject.toml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memwrite.errors import MemwriteError


class MissingExtra(MemwriteError, ImportError):
    """A package is not installed that only an extra of memwrite brings."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra to install where an import within this block finds no package.

    Args:
        name: of the extra, as in pyproject.toml.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the package '{error.name}' is needed here and not installed: pip install 'memwrite[{name}]'"
        ) from error
