"""`memwrite mcp`: memories as tools for agents."""

from __future__ import annotations

import click

from memwrite.cli._config import Source, config_options
from memwrite.cli._options import check_keeps


@click.command()
@config_options
@click.option("--store", "place", required=True, help="Where memories are kept: a file or a URL.")
@click.option(
    "--max-tokens",
    default=128,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of an answer.",
)
def mcp(source: Source, overrides: tuple[str, ...], place: str, max_tokens: int) -> None:
    """Serve memories to an agent over standard input and output, by the Model Context Protocol.

    CONFIG is a YAML file or a run folder; OVERRIDES change it. Without one, --model and --writer say what to build. The
    agent's program starts this command; its tools are write, ask, append, forget and list.
    """
    from memwrite.memory import Memory
    from memwrite.stores import Store
    from memwrite_mcp.server import create_server

    memory = Memory.from_config(source, overrides)
    check_keeps(memory)
    if memory.caveat:
        click.echo(f"Note: {memory.caveat}.", err=True)
    with Store(place) as store:
        create_server(memory, store, max_tokens).run("stdio")
