"""What every command does with its report in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import click


class Report(Protocol):
    """A report that can be saved as a page, and printed."""

    def save(self, folder: Path) -> None: ...

    def as_dict(self) -> dict[str, Any]: ...

    def lines(self) -> list[str]: ...


def finish(report: Report, out: Path, as_json: bool) -> None:
    """Save a report, and print it."""
    report.save(out)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
        return
    for line in report.lines():
        click.echo(line)
    click.echo(f"\nreport: {out / 'index.html'}")
