"""`memwrite audit`: what a state reveals."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from memwrite.cli._options import open_state, read_text, state_options


@click.command()
@state_options
@click.option("--context", help="The text that was written, to compare with; - for standard input.")
@click.option(
    "--prompt", "prompts", multiple=True, help="Beginning to continue as well; may be repeated."
)
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(min=1))
def audit(
    state: str,
    key: str | None,
    backbone: str | None,
    device: str | None,
    force: bool,
    as_json: bool,
    context: str | None,
    prompts: tuple[str, ...],
    max_new_tokens: int,
) -> None:
    """Reconstruct from the state STATE, with the model and nothing else, what was written into it.

    What comes out is what anyone can read who has the state: the memory of a private document is private data. What does
    not come out is not safe for that, since a better attack may find more; --context tells by how many bits the state
    narrows down the text, which no decoding can hide.
    """
    original = None if context is None else read_text(context)
    from memwrite.evaluation.reconstruction_attack import audit as reconstruct

    memory, loaded = open_state(state, key, backbone, device, force)
    report = reconstruct(memory, loaded, prompts, original, max_new_tokens)
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    click.echo(f"{report.state_bytes} bytes of state, read without its text:")
    for one in report.found:
        behind = f" behind {one.prompt!r}" if one.prompt else ""
        click.echo(f"\n{one.bits:.0f} bits likelier than for the model alone{behind}:\n{one.text}")
    if not report.found:
        click.echo("\nnothing came back")
    if report.original is not None:
        comparison = report.original
        click.echo(
            f"\n{comparison.bytes_right:.1%} of the text's bytes came back; the state tells {comparison.bits_revealed:.0f} of the "
            f"{comparison.bits:.0f} bits that the model needs for it"
        )
    click.echo("\nKeep a state as you keep its text: a better attack may find more.")
