"""`memwrite laws`: what the laws say."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print a table.")
def laws(as_json: bool, markdown: bool) -> None:
    """List the laws of memories with what they say."""
    from memwrite_specs.cli.report import row
    from memwrite_specs.laws import all_laws

    statements = {name: law.statement for name, law in all_laws().items()}
    if as_json:
        click.echo(json.dumps(statements))
    elif markdown:
        lines = [row("law", "what it says"), row("---", "---")]
        click.echo("\n".join([*lines, *(row(f"`{n}`", text) for n, text in statements.items())]))
    else:
        for name, text in statements.items():
            click.echo(f"{name}\n{click.wrap_text(text, 96, '    ', '    ')}")
