"""Entry points of installed packages, and the allowlist of those that may be imported: importing a plugin runs its code."""

from __future__ import annotations

import os
import re
from importlib.metadata import EntryPoint, entry_points

#: The environment variable with the names of the distributions that may be imported, separated by commas; not set, all may.
ALLOWLIST = "MEMWRITE_PLUGINS"


def installed(group: str) -> tuple[list[EntryPoint], list[EntryPoint]]:
    """Return the entry points of `group` that may be loaded, and those that may not, sorted by distribution and name.

    `MEMWRITE_NO_PLUGINS=1` allows none, `MEMWRITE_PLUGINS=memwrite-gradient,memwrite-lora` only those of these
    distributions. Nothing is imported.
    """
    if os.environ.get("MEMWRITE_NO_PLUGINS") == "1":
        return [], []
    points = sorted(entry_points(group=group), key=lambda p: (distribution(p), p.name))
    listed = os.environ.get(ALLOWLIST)
    if listed is None:
        return points, []
    names = {_normal(name) for name in listed.split(",")}
    allowed = [point for point in points if _normal(distribution(point)) in names]
    return allowed, [point for point in points if point not in allowed]


def distribution(point: EntryPoint) -> str:
    """Return the name of the package that an entry point belongs to."""
    return point.dist.name if point.dist else "unknown"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
