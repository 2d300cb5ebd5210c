"""`memwrite store`: what a store of memories holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from memwrite.stores import Entry

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def store() -> None:
    """Look into a store of memories, and remove what is in it.

    A store is what `memwrite write --input` makes: a file, or a URL like s3://bucket/memories.
    """


def _tell(entry: Entry, as_json: bool) -> None:
    from memwrite.stores.store import entry_fields

    fields = entry_fields(entry)
    if as_json:
        click.echo(json.dumps(fields))
        return
    until = f"  until {fields['expires']}" if entry.expires else ""
    click.echo(f"{entry.key}  {entry.nbytes} bytes  {fields['created']}{until}")


@store.command("list")
@click.argument("place")
@click.option("--prefix", default="", help="Print only keys that begin so.")
@_JSON
def list_(place: str, prefix: str, as_json: bool) -> None:
    """Print a line for each memory in the store PLACE, by key."""
    from memwrite.stores import Store

    with Store(place, make=False) as opened:
        for entry in opened.list(prefix):
            _tell(entry, as_json)


@store.command()
@click.argument("place")
@click.argument("key")
@_JSON
def history(place: str, key: str, as_json: bool) -> None:
    """Print a line for each earlier state that the store PLACE keeps of the memory KEY, newest first."""
    from memwrite.stores import Store

    with Store(place, make=False) as opened:
        opened.provenance(key)  # refuses a key under which there is nothing
        for entry in opened.history(key):
            _tell(entry, as_json)


@store.command()
@click.argument("place")
@click.argument("key")
@click.option(
    "--steps", default=1, show_default=True, type=click.IntRange(min=1), help="Puts to go back."
)
def rollback(place: str, key: str, steps: int) -> None:
    """Put back the state that the memory KEY in the store PLACE had, and remove what came after it."""
    from memwrite.stores import Store

    with Store(place, make=False) as opened:
        opened.rollback(key, steps)
        _tell(opened.find([key])[key], as_json=False)


@store.command()
@click.argument("place")
@click.argument("key")
@_JSON
def show(place: str, key: str, as_json: bool) -> None:
    """Print where the memory KEY in the store PLACE came from."""
    from memwrite.stores import Store

    with Store(place, make=False) as opened:
        fields = opened.provenance(key)
    if as_json:
        click.echo(json.dumps(fields))
        return
    for name, value in fields.items():
        click.echo(f"{name}: {value if isinstance(value, (str, int)) else json.dumps(value)}")


@store.command()
@click.argument("place")
@click.argument("key")
@click.option("--out", required=True, help="State file to make.")
def get(place: str, key: str, out: str) -> None:
    """Copy the memory KEY out of the store PLACE into a state file."""
    from memwrite.checkpoints.state_file import save_state
    from memwrite.stores import Store
    from memwrite.utils.atomic import check_target

    check_target(Path(out), place)
    with Store(place, make=False) as opened:
        save_state(Path(out), opened.file(key))
    click.echo(out)


@store.command()
@click.argument("place")
@click.argument("other")
@click.option("--prefix", default="", help="Copy only keys that begin so.")
@click.option("--replace", is_flag=True, help="Replace what else OTHER holds under the same keys.")
@_JSON
def copy(place: str, other: str, prefix: str, replace: bool, as_json: bool) -> None:
    """Copy what the store PLACE holds into the store OTHER, with its history.

    Each is a file or a URL. OTHER is made if it is not there, and keeps what it holds under other keys. Every record is
    checked. The same command again copies what is missing, so it may be interrupted.
    """
    from memwrite.stores.copying import copy_store

    done = copy_store(place, other, prefix, replace)
    click.echo(
        json.dumps(asdict(done))
        if as_json
        else f"{done.copied} memories copied ({done.nbytes} bytes), {done.already} there already"
    )


@store.command()
@click.argument("place")
@click.argument("keys", nargs=-1, required=True)
def delete(place: str, keys: tuple[str, ...]) -> None:
    """Remove the memories KEYS from the store PLACE, without a trace."""
    from memwrite.stores import Store

    with Store(place, make=False) as opened:
        click.echo(f"{opened.delete(*keys)} of {len(keys)} deleted")


@store.command()
@click.argument("place")
def expire(place: str) -> None:
    """Remove all memories from the store PLACE that have expired, without a trace."""
    from memwrite.stores import Store

    with Store(place, make=False) as opened:
        click.echo(f"{opened.expire()} deleted")


@store.command()
@click.argument("place")
@_JSON
def size(place: str, as_json: bool) -> None:
    """Print how many memories the store PLACE holds, and their bytes."""
    from memwrite.stores import Store

    with Store(place, make=False) as opened:
        total = opened.size()
    report = {"memories": total.memories, "bytes": total.nbytes}
    click.echo(
        json.dumps(report) if as_json else f"{total.memories} memories, {total.nbytes} bytes"
    )
