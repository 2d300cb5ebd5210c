"""`memwrite import` and `memwrite export`: run folders and states from and into the formats of others."""

from __future__ import annotations

import click


@click.command("import")
@click.argument("importer")
@click.argument("folder")
@click.option("--out", required=True, help="Run folder to make; with 'peft', state file.")
@click.option("--base", help="Folder with the language model's config.json and tokenizer.")
def import_(importer: str, folder: str, out: str, base: str | None) -> None:
    """Make a run folder of the weights in FOLDER, which are of the format IMPORTER (see `memwrite plugins`).

    With IMPORTER `peft`, make a state file of a cartridge or a LoRA.
    """
    from memwrite.convert import PEFT, import_run, import_state

    if importer == PEFT:
        import_state(folder, out, base)
    else:
        import_run(importer, folder, out, base)
    click.echo(f"Saved to {out}")


@click.command("export")
@click.argument("source")
@click.argument("out")
@click.option(
    "--format",
    required=True,
    help="'peft' or 'prompt-embeds' for a state file; an importer for a run folder.",
)
@click.option(
    "--prompt",
    help="What is asked of the memory, with 'prompt-embeds'; by default the memory stands alone.",
)
@click.option("--raw", is_flag=True, help="Continue the prompt, whatever the model.")
def export(source: str, out: str, format: str, prompt: str | None, raw: bool) -> None:
    """Write SOURCE as the folder OUT, in the format of another project.

    A state file becomes an adapter for `peft`; or, with a prompt behind it, `prompt-embeds` for vLLM. A run folder becomes
    what one of the importers reads (see `memwrite plugins`).
    """
    from memwrite.convert import PEFT, PROMPT_EMBEDS, export_prompt, export_run, export_state

    if format == PROMPT_EMBEDS:
        export_prompt(source, out, prompt or "", raw or None)
    elif prompt is not None or raw:
        raise click.UsageError(f"--prompt and --raw go with --format {PROMPT_EMBEDS}")
    elif format == PEFT:
        export_state(source, out)
    else:
        export_run(format, source, out)
    click.echo(f"Saved to {out}")
