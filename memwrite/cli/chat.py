"""`memwrite chat`: a session in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from memwrite.session import Session

_HELP = "/state  /reset  /save FILE  /load FILE  /read (only), /write (again)  /quit"


@click.command()
@click.argument("run")
@click.option("--state", help="State file to go on from.")
@click.option("--read-only", is_flag=True, help="Answer without writing.")
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@click.option("--recommended", is_flag=True, help="Generate as the model's folder recommends.")
@click.option("--device", help="cpu, cuda, ...; by default as in RUN's config.")
def chat(
    run: str,
    state: str | None,
    read_only: bool,
    max_new_tokens: int,
    recommended: bool,
    device: str | None,
) -> None:
    """Talk to the memory of RUN, a run folder or a config. The text is forgotten; the state remembers."""
    from memwrite.cli.ask import printed
    from memwrite.errors import MemwriteError
    from memwrite.memory import Memory
    from memwrite.session import Session

    memory = Memory.from_config(run, [f"backbone.device={device}"] if device else [])
    if memory.caveat:
        click.echo(f"Note: {memory.caveat}.", err=True)
    session = Session(memory, read_only=read_only)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        **({"recommended": True} if recommended else {}),
    }
    if state is not None:
        session.load(state)
    if sys.stdin.isatty():
        click.echo(_HELP)
    while (line := _line()) is not None:
        try:
            if line.startswith("/"):
                if line.split()[0] == "/quit":
                    break
                _command(session, line)
            elif line.strip():
                messages = [{"role": "user", "content": line}]
                printed(session.ask, messages, strip=True, **options)
                click.echo(click.style(describe(session), dim=True))
        except MemwriteError as error:
            click.echo(f"Error: {error}", err=True)


def _line() -> str | None:
    """Return what the user types, or None at the end of the input; a blank line is no end."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    try:
        return str(click.prompt("you", prompt_suffix="> ", default="", show_default=False))
    except click.Abort:
        click.echo()
        return None


def _command(session: Session, line: str) -> None:
    name, _, file = line.strip().partition(" ")
    if name == "/reset":
        session.reset()
    elif name in ("/read", "/write"):
        session.read_only = name == "/read"
    elif name in ("/save", "/load") and file:
        (session.save if name == "/save" else session.load)(Path(file.strip()))
    elif name != "/state":
        click.echo(_HELP)
        return
    click.echo(describe(session))


def describe(session: Session) -> str:
    """Return size, norm and half-life of a session's state in one line."""
    state = session.state
    norm = sum(float(t.double().square().sum()) for t in state.tensors.values()) ** 0.5
    line = f"state: {state.nbytes:,} bytes, norm {norm:.3g}"
    if session.last is not None and "half_life" in session.last.trace:
        half = float(session.last.trace["half_life"][-1].mean())
        line += f", half of it forgotten after {half:.3g} writes"
    return line + (", read-only" if session.read_only else "")
