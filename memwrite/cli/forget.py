"""`memwrite forget`: a text out of a state file again."""

from __future__ import annotations

import click

from memwrite.cli._config import Source, config_options
from memwrite.cli.write import change_state


@click.command()
@config_options
@click.option("--context", required=True, help="UTF-8 text file to forget; - for standard input.")
@click.option("--state", required=True, help="State file of a memory that has read it.")
@click.option("--out", required=True, help="State file to make.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def forget(
    source: Source,
    overrides: tuple[str, ...],
    context: str,
    state: str,
    out: str,
    as_json: bool,
) -> None:
    """Take a text out of a memory, with a writer of the capability deletion.

    CONFIG, OVERRIDES, --model and --writer are those that the state was written with. The text must have been written by
    itself, by `memwrite write --context`, with or without --onto, and be the same to the letter. What is left is the state
    of a memory that never read it; the file STATE itself stays, so delete it.
    """
    change_state(source, overrides, context, state, out, as_json, forget=True)
