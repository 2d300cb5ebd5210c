"""`memwrite new`: a package for a writer of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to make; by default memwrite-NAME here."
)
def new(name: str, out: Path | None) -> None:
    """Make a package for a writer of your own, which works at once.

    NAME is what configs will call it: lowercase words joined by hyphens.
    """
    from memwrite_specs.scaffold import checked, make

    word = checked(name)
    folder = out or Path(f"memwrite-{word}")
    make(word, folder)
    module = f"memwrite_{word.replace('-', '_')}"
    click.echo(f"The writer '{word}' is in {folder / module / 'writer.py'}. Next:")
    for command in (f"cd {shlex.quote(str(folder))}", "pip install -e '.[test]'", "pytest"):
        click.echo(f"  {command}")
