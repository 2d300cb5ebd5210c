"""`memwrite new`: a package for a plugin of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.option(
    "--kind",
    help="Kind of the writer's states: prefix (the default), keyvalue, matrix, lowrank, or a new name for a kind of your "
    "own, which gets a reader, too.",
)
@click.option("--reader", is_flag=True, help="Make a reader of prefixes in place of a writer.")
@click.option("--task", is_flag=True, help="Make a task in place of a writer.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to make; by default memwrite-NAME here."
)
def new(name: str, kind: str | None, reader: bool, task: bool, out: Path | None) -> None:
    """Make a package for a writer of your own, or a reader or a task, which works at once.

    NAME is what configs will call it: lowercase words joined by hyphens.
    """
    from memwrite.errors import ConfigError
    from memwrite_specs.scaffold import Scaffold, checked, make

    if sum((kind is not None, reader, task)) > 1:
        raise ConfigError("give one of --kind, --reader and --task: a package is for one of them")
    role = "reader" if reader else "task" if task else "writer"
    scaffold = Scaffold(role, kind or "prefix")
    word = checked(name)
    folder = out or Path(f"memwrite-{word}")
    make(word, folder, scaffold)
    module = f"memwrite_{word.replace('-', '_')}"
    click.echo(f"The {role} '{word}' is in {folder / module / role}.py. Next:")
    for command in (f"cd {shlex.quote(str(folder))}", "pip install -e '.[test]'", "pytest"):
        click.echo(f"  {command}")
