"""`memwrite plugins`: what is installed, where it came from, whether it works, what fits what."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from memwrite.plugins.registry import Registry
    from memwrite.plugins.table import Owner


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--traceback", is_flag=True, help="Show the traceback of what could not be loaded.")
def plugins(name: str | None, as_json: bool, traceback: bool) -> None:
    """List writers, readers, importers and tasks with origin, version, health and the pairs that fit.

    With a NAME: what that writer, reader or task does, and its parameters with their defaults.

    Plugins are code: a listed one has run, with all that you may do. MEMWRITE_PLUGINS=memwrite-gradient,memwrite-lora
    allows these distributions alone, MEMWRITE_NO_PLUGINS=1 none; nothing is imported of the others. Exit code 2 when one
    is broken or two share a name.
    """
    from memwrite.plugins import registry

    installed = registry()
    if name is not None:
        _describe(installed, name, as_json)
        return
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


def _describe(installed: Registry, name: str, as_json: bool) -> None:
    """Print everything that is called so.

    Raises:
        PluginNotFound: nothing is.
    """
    from memwrite.errors import PluginNotFound, did_you_mean

    reports = [
        _report(installed, table.role, plugin, owner)
        for table in installed.tables
        for plugin, owner in table.entries.get(name, [])
    ]
    if not reports:
        names = {known for table in installed.tables for known in table.entries}
        raise PluginNotFound(f"nothing installed is called '{name}' ({did_you_mean(name, names)})")
    click.echo(json.dumps(reports) if as_json else "\n\n".join(map(_page, reports)))


def _report(installed: Registry, role: str, plugin: Any, owner: Owner) -> dict[str, Any]:
    from memwrite.plugins.parameters import description, parameters

    config = getattr(plugin, "config", None)
    pairs = installed.pairs() if role in ("writer", "reader") else []
    return {
        "role": role,
        "name": plugin.name,
        "origin": owner.distribution,
        "version": owner.version,
        "summary": getattr(plugin, "summary", ""),
        "fits": [
            other.name for pair in pairs for own, other in (pair, pair[::-1]) if own is plugin
        ],
        "description": description(config) if config else "",
        "parameters": [asdict(p) for p in parameters(config)] if config else [],
    }


def _page(report: Mapping[str, Any]) -> str:
    lines = [
        f"{report['role']} {report['name']}: {report['summary']}  ({report['origin']} {report['version']})"
    ]
    if report["fits"]:
        lines.append(f"goes with {', '.join(report['fits'])}")
    if report["description"]:
        lines += ["", click.wrap_text(report["description"], 100, preserve_paragraphs=True)]
    for parameter in report["parameters"]:
        default = "required" if parameter["default"] is None else parameter["default"]
        lines += [
            "",
            f"{report['role']}.params.{parameter['name']}: {parameter['type']} = {default}",
            click.wrap_text(parameter["meaning"], 100, "    ", "    "),
        ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
