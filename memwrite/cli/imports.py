"""`memwrite import`: released weights into a run folder."""

from __future__ import annotations

import click


@click.command("import")
@click.argument("importer")
@click.argument("folder")
@click.option("--out", required=True, help="Run folder to make.")
@click.option("--base", help="Folder with the language model's config.json and tokenizer.")
def import_(importer: str, folder: str, out: str, base: str | None) -> None:
    """Make a run folder of the weights in FOLDER, which are of the format IMPORTER (see `memwrite plugins`)."""
    from memwrite.released import import_run

    import_run(importer, folder, out, base)
    click.echo(f"Saved to {out}")
