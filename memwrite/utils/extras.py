"""Imports of optional packages, which the extras in pyproject.toml install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memwrite.errors import MemwriteError


class MissingExtra(MemwriteError, ImportError):
    """A package that only an extra of memwrite installs is missing."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra to install if an import within this block finds no package.

    Args:
        name: the name of the extra in pyproject.toml.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtra(
            f"the package '{package}' is needed here and not installed: pip install 'memwrite[{name}]'"
        ) from error
