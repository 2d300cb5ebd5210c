"""What several commands share: their options, and how they open texts and states."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from memwrite.errors import InputError

if TYPE_CHECKING:
    from memwrite.memory import Memory
    from memwrite.state import MemoryState

F = TypeVar("F", bound=Callable[..., Any])


_SQLITE = b"SQLite format 3\0"


def once(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> str | None:
    """Refuse an option that is given several times, of which click would silently take the last."""
    if len(values) > 1:
        raise click.BadParameter("it can be given only once", ctx, param)
    return values[0] if values else None


def state_options(command: F) -> F:
    """Add what every command that reads a state takes: state, key, backbone, device, force, as_json."""
    for option in (
        click.option("--key", help="Of the memory, where STATE is a store of many."),
        click.option("--backbone", help="Folder of the backbone; by default where the file says."),
        click.option("--device", help="cpu, cuda, ...; by default where the writer ran."),
        click.option("--force", is_flag=True, help="Read with another backbone all the same."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.argument("state"),
    ):
        command = option(command)
    return command


def read_text(source: str) -> str:
    """Return the text of a file, or of standard input for "-".

    Raises:
        InputError: it is missing, empty or not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise InputError(f"the context '{source}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"the context '{source}' is not UTF-8 text: byte {error.start}") from None
    if not text.strip():
        raise InputError(f"the context '{source}' is empty: give a text to write")
    return text


def check_keeps(memory: Memory) -> None:
    """Refuse to write with a writer that keeps nothing.

    Raises:
        InputError: the memory has such a writer.
    """
    if memory.writer.spec.kind == "empty":
        raise InputError(
            f"writer '{memory.config.writer.name}' keeps nothing of a text, so there is nothing to write: "
            f"choose another one (`memwrite plugins` lists them)"
        )


def open_state(
    path: str, key: str | None, backbone: str | None, device: str | None, force: bool
) -> tuple[Memory, MemoryState]:
    """Return the memory that reads a state file, or one key of a store, and its state of one row.

    Raises:
        StorageError, InputError: it cannot be read, holds several memories, or is a store and no key was given.
    """
    if key is None and _is_store(path):
        raise InputError(
            f"'{path}' is a store of many memories: name one with --key (`memwrite store list {path}` lists them)"
        )
    from memwrite.memory import Memory
    from memwrite.stores import Store

    if key is None:
        memory, state = Memory.load(path, backbone=backbone, device=device, force=force)
    else:
        with Store(path, make=False) as store:
            memory, state = store.load(key, backbone=backbone, device=device, force=force)
    if state.batch_size not in (None, 1):
        raise InputError(f"'{path}' holds {state.batch_size} memories, and this command reads one")
    return memory, state


def _is_store(path: str) -> bool:
    if "://" in path:
        return True
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False
