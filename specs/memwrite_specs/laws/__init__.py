"""The laws, each a plain function whose docstring is the specification."""

from __future__ import annotations

from memwrite.errors import PluginBroken, PluginConflict
from memwrite.plugins import registry
from memwrite_specs.law import Law
from memwrite_specs.laws import (
    capabilities,
    information,
    leakage,
    rows,
    sessions,
    shape,
    usability,
    writes,
)

__all__ = ["CONTRACT", "LAWS", "PAIR_LAWS", "all_laws"]

#: The laws of the kit by name, in the order in which they are reported.
LAWS: dict[str, Law] = {
    law.name: law
    for module in (shape, usability, writes, leakage, rows, sessions, information, capabilities)
    for law in vars(module).values()
    if isinstance(law, Law)
}
#: The laws that concern how a writer and a reader go together: enough for a pair whose writer and reader have each kept
#: all laws with another partner.
PAIR_LAWS = frozenset(name for name, law in LAWS.items() if law.pairing)
#: The law that comes first: whatever breaks it is not tried any further.
CONTRACT = shape.contract


def all_laws() -> dict[str, Law]:
    """Return the laws of the kit, then those that plugins declare through the hook `memwrite_laws`.

    Raises:
        PluginConflict: a law's name is declared twice.
        PluginBroken: what a plugin declares is no `Law`.
    """
    found = dict(LAWS)
    for name, owners in registry().laws.entries.items():
        declared, owner = owners[0]
        if not isinstance(declared, Law):
            raise PluginBroken(
                f"the law '{name}' of {owner} is a {type(declared).__name__}: make it with memwrite_specs.law.law"
            )
        if name in found or len(owners) > 1:
            raise PluginConflict(f"the law '{name}' of {owner} has a name that is taken: rename it")
        found[name] = declared
    return found
