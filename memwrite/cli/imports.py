"""`memwrite import` and `memwrite export`: run folders from and into the formats of others."""

from __future__ import annotations

import click


@click.command("import")
@click.argument("importer")
@click.argument("folder")
@click.option("--out", required=True, help="Run folder to make.")
@click.option("--base", help="Folder with the language model's config.json and tokenizer.")
def import_(importer: str, folder: str, out: str, base: str | None) -> None:
    """Make a run folder of the weights in FOLDER, which are of the format IMPORTER (see `memwrite plugins`)."""
    from memwrite.convert import import_run

    import_run(importer, folder, out, base)
    click.echo(f"Saved to {out}")


@click.command("export")
@click.argument("format")
@click.argument("run")
@click.option("--out", required=True, help="Folder to make.")
def export(format: str, run: str, out: str) -> None:
    """Write the memory of the run folder RUN in the format FORMAT (see the importers in `memwrite plugins`)."""
    from memwrite.convert import export_run

    export_run(format, run, out)
    click.echo(f"Saved to {out}")
