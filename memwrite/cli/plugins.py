"""`memwrite plugins`: what is installed, where it came from, whether it works, what fits what."""

from __future__ import annotations

import json
import sys

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--traceback", is_flag=True, help="Show the traceback of what could not be loaded.")
def plugins(as_json: bool, traceback: bool) -> None:
    """List writers, readers, importers and tasks with origin, version, health and the pairs that fit.

    Plugins are code: a listed one has run, with all that you may do. MEMWRITE_PLUGINS=memwrite-gradient,memwrite-lora
    allows these distributions alone, MEMWRITE_NO_PLUGINS=1 none; nothing is imported of the others. Exit code 2 when one
    is broken or two share a name.
    """
    from memwrite.plugins import registry

    installed = registry()
    parts = [
        {
            "role": table.role,
            "name": name,
            "kinds": sorted(
                [plugin.emits] if hasattr(plugin, "emits") else getattr(plugin, "accepts", ())
            ),
            "origin": owner.distribution,
            "version": owner.version,
            "health": "ok" if len(owners) == 1 else "conflict",
            "summary": plugin.summary,
        }
        for table in installed.tables
        for name, owners in table.entries.items()
        for plugin, owner in owners
    ]
    pairs = [(writer.name, reader.name) for writer, reader in installed.pairs()]
    if as_json:
        failures = [{"origin": str(f.owner), "error": str(f.error)} for f in installed.failures]
        blocked = [str(failure.owner) for failure in installed.blocked]
        report = {"plugins": parts, "pairs": pairs, "failures": failures, "not_allowed": blocked}
        click.echo(json.dumps(report))
    else:
        columns = ("role", "name", "kinds", "origin", "version", "health", "summary")
        rows = [columns, *(tuple(_cell(part[c]) for c in columns) for part in parts)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        for row in rows:
            click.echo(
                "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            )
        click.echo("\npairs that fit: " + ", ".join(f"{w} + {r}" for w, r in pairs))
        if installed.blocked:
            click.echo(
                "not allowed: " + ", ".join(str(failure.owner) for failure in installed.blocked)
            )
    for failure in installed.failures:
        click.echo(f"Error: {failure.error}", err=True)
        if traceback and failure.traceback:
            click.echo(failure.traceback, err=True)
    if installed.failures:
        sys.exit(2)


def _cell(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
