"""`memwrite recall` and `memwrite ask`: what a state holds, read from the state alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from memwrite.cli._options import open_state, state_options


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
@click.option("--raw", is_flag=True, help="Continue PROMPT as a text, whatever the model.")
@click.option("--recommended", is_flag=True, help="Generate as the model's folder recommends.")
def ask(
    state: str,
    key: str | None,
    prompt: str,
    backbone: str | None,
    device: str | None,
    force: bool,
    as_json: bool,
    max_new_tokens: int,
    raw: bool,
    recommended: bool,
) -> None:
    """Answer PROMPT given only the state file STATE, or a memory in the store STATE.

    On a model with a chat template PROMPT is what a user asks; on others, and with --raw, it is a text to continue. With
    - for PROMPT every line of standard input is one, each answered by itself; --json prints an object a line.
    """
    memory, loaded = open_state(state, key, backbone, device, force)
    if memory.caveat:
        click.echo(f"Note: {memory.caveat}.", err=True)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "raw": raw or None}
    if recommended:
        options["recommended"] = True
    for text in _lines() if prompt == "-" else [prompt]:
        if as_json:
            answer = memory.ask(loaded, text, **options)
            click.echo(json.dumps({"prompt": text, "answer": answer}))
        else:
            answer = printed(memory.ask, loaded, text, **options)
        if not answer.strip():
            click.echo(f"Note: {_EMPTY}", err=True)


_EMPTY = (
    "the answer is empty: the model ended it at once. The state may not hold it, or the prompt may not have the form that "
    "this model or memory knows."
)


def printed(ask: Callable[..., str], *given: Any, strip: bool = False, **options: Any) -> str:
    """Print the answer of `ask`, of a memory or a session, and return it; in a terminal piece by piece as it is generated."""
    if not _in_terminal():
        text = ask(*given, **options)
        click.echo(text.strip() if strip else text)
        return text
    text = ask(*given, stream=lambda piece: click.echo(piece, nl=False), **options)
    click.echo()
    return text


def _in_terminal() -> bool:
    return sys.stdout.isatty()


def _lines() -> Iterable[str]:
    """Return the lines of standard input that are not blank, as they come."""
    return (text for line in sys.stdin if (text := line.rstrip("\r\n")).strip())
