"""Which installed packages may bring code of their own: plugins are code, and importing one runs it."""

from __future__ import annotations

import os
import re
from importlib.metadata import EntryPoint, entry_points

#: Names of distributions, with commas between them, that may be imported; all may where it is not set.
ALLOWLIST = "MEMWRITE_PLUGINS"


def installed(group: str) -> tuple[list[EntryPoint], list[EntryPoint]]:
    """The entry points of `group` that may be loaded, by distribution and name, and those that may not.

    `MEMWRITE_NO_PLUGINS=1` allows none, `MEMWRITE_PLUGINS=memwrite-gradient,memwrite-lora` those of these
    distributions alone. Nothing is imported here.
    """
    if os.environ.get("MEMWRITE_NO_PLUGINS") == "1":
        return [], []
    found = sorted(entry_points(group=group), key=lambda p: (distribution(p), p.name))
    listed = os.environ.get(ALLOWLIST)
    if listed is None:
        return found, []
    names = {_normal(name) for name in listed.split(",")}
    allowed = [point for point in found if _normal(distribution(point)) in names]
    return allowed, [point for point in found if point not in allowed]


def distribution(point: EntryPoint) -> str:
    """The name of the package that an entry point came with."""
    return point.dist.name if point.dist else "unknown"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
