"""`memwrite recall` and `memwrite ask`: what a state holds, read from the state alone."""

from __future__ import annotations

import json

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
