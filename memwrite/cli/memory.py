"""`memwrite write`, `recall` and `ask`: text into a state file, and out of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from memwrite.errors import InputError

if TYPE_CHECKING:
    from memwrite.memory import Memory
    from memwrite.state import MemoryState

F = TypeVar("F", bound=Callable[..., Any])


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--context", help="UTF-8 text file to write; - for standard input.")
@click.option("--input", "documents", help='JSONL file to write, {"id": ..., "text": ...} a line.')
@click.option("--out", required=True, help="State file to make, or the store for --input.")
@click.option(
    "--batch-size",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="Documents of --input that are written together.",
)
@click.option("--days", type=click.FloatRange(min=0), help="Until what --input writes expires.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def write(
    config: str,
    overrides: tuple[str, ...],
    context: str | None,
    documents: str | None,
    out: str,
    batch_size: int,
    days: float | None,
    as_json: bool,
) -> None:
    """Write a text into a memory state, or many documents into a store of memories.

    CONFIG is a YAML file or a run folder; OVERRIDES change it, as in writer.params.slots=8.

    With --context the text becomes one state file. With --input each line's text becomes a memory in the store OUT,
    under the line's id (its number, if it has none): a file, or a URL like s3://bucket/memories. The same command again
    writes what is missing or has another text, so it may be interrupted. Lines that cannot be written are told and
    skipped; the exit code is then 3. torchrun --nproc-per-node 2 -m memwrite write ... shares the work.
    """
    if (context is None) == (documents is None):
        raise click.UsageError("give either --context, a text, or --input, a file of documents")
    if documents is not None:
        from memwrite.cli.documents import write_file

        write_file(config, overrides, Path(documents), out, batch_size, days, as_json)
        return
    assert context is not None
    _write_text(config, overrides, context, out, as_json)


def _write_text(
    config: str, overrides: tuple[str, ...], context: str, out: str, as_json: bool
) -> None:
    text = read_text(context)
    from memwrite.utils.atomic import check_target

    check_target(Path(out), context, config)
    from memwrite.memory import Memory
    from memwrite.utils.progress import show_progress

    memory = Memory.from_config(config, overrides)
    tokens = memory.encode(text)
    with show_progress():
        written = memory.write(tokens)
    memory.save(written.state, out)
    report: dict[str, Any] = {
        "out": out,
        "text_bytes": len(text.encode()),
        "tokens": int(tokens.lengths),
        "state": {name: list(shape) for name, shape in written.state.spec.shapes.items()},
        "state_bytes": written.state.nbytes,
        **{name: float(values[-1, 0]) for name, values in written.trace.items() if len(values)},
        "steps": max((len(values) for values in written.trace.values()), default=0),
    }
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(
        f"{report['text_bytes']} bytes of text ({report['tokens']} tokens) -> {out}: "
        f"{report['state_bytes']} bytes of state"
    )
    if "accuracy" in report:
        click.echo(f"{report['accuracy']:.1%} of the tokens right after {report['steps']} steps")
        if report["accuracy"] < 1:
            click.echo(
                "Note: the state does not hold the whole text: give the writer a larger state or more "
                "steps.",
                err=True,
            )
    room = memory.backbone.info.positions - memory.writer.reserved_positions
    if report["tokens"] > room:
        click.echo(
            f"Note: the text is longer than the model's {memory.backbone.info.positions} positions, so "
            f"it was written in chunks of {room} tokens; later chunks may overwrite earlier ones.",
            err=True,
        )


def state_options(command: F) -> F:
    """What every command that reads a state takes: state, key, backbone, device, force, as_json."""
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


@click.command()
@state_options
def recall(
    state: str,
    key: str | None,
    backbone: str | None,
    device: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Print the text that the state file STATE, or a memory in the store STATE, holds: decoded from the state alone."""
    memory, loaded = open_state(state, key, backbone, device, force)
    text = memory.ask(loaded)
    click.echo(json.dumps({"text": text, "state_bytes": loaded.nbytes}) if as_json else text)


@click.command()
@state_options
@click.argument("prompt")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(min=1))
def ask(
    state: str,
    key: str | None,
    prompt: str,
    backbone: str | None,
    device: str | None,
    force: bool,
    as_json: bool,
    max_new_tokens: int,
) -> None:
    """Continue PROMPT given only the state file STATE, or a memory in the store STATE."""
    memory, loaded = open_state(state, key, backbone, device, force)
    answer = memory.ask(loaded, prompt, max_new_tokens=max_new_tokens)
    click.echo(json.dumps({"prompt": prompt, "answer": answer}) if as_json else answer)


def read_text(source: str) -> str:
    """The text of a file, or of standard input for "-".

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


def open_state(
    path: str, key: str | None, backbone: str | None, device: str | None, force: bool
) -> tuple[Memory, MemoryState]:
    """The memory that reads a state file, or one key of a store, and its state of one row.

    Raises:
        StorageError, InputError: it cannot be read, or holds several.
    """
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
