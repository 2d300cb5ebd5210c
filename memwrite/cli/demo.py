"""`memwrite demo`: the main job end to end, with a report to look at."""

from __future__ import annotations

from pathlib import Path

import click

#: Writers that have learnt to write: one model with one, two and five gradient steps, and one of forward passes.
MEMORIES = (
    "models/gradmem-kv-32-k1to5-0:1",
    "models/gradmem-kv-32-k1to5-0:2",
    "models/gradmem-kv-32-k1to5-0:5",
    "models/rmt-kv-0",
)

#: Writers that make a memory of use on a model that nobody trained for them.
WRITERS = ("configs/compact.yaml", "configs/demo-cartridge.yaml", "configs/demo-soft-prompt.yaml")


@click.command()
@click.option("--config", default="configs/cram.yaml", show_default=True, help="YAML config.")
@click.option("--context", help="UTF-8 text file; by default an embedded paragraph.")
@click.option(
    "--run",
    "runs",
    multiple=True,
    default=MEMORIES,
    show_default=True,
    help="Run folder that answers pairs; RUN:K for another number of steps. Give it many times.",
)
@click.option("--pair", "words", multiple=True, help="KEY:VALUE to remember; give it many times.")
@click.option(
    "--model",
    default="smollm2-135m",
    show_default=True,
    help="Pretrained model that remembers the article: a folder, a GGUF file, or a name.",
)
@click.option("--article", help="UTF-8 text file; by default an embedded article.")
@click.option("--question", help="About the article.")
@click.option(
    "--writer",
    "writers",
    multiple=True,
    default=WRITERS,
    show_default=True,
    help="YAML config that writes the article. Give it many times.",
)
@click.option("--out", default="runs/demo", show_default=True, help="Folder for the report.")
def demo(
    config: str,
    context: str | None,
    runs: tuple[str, ...],
    words: tuple[str, ...],
    model: str,
    article: str | None,
    question: str | None,
    writers: tuple[str, ...],
    out: str,
) -> None:
    """Write texts into memories, drop them, and read from the memories alone.

    An article on a pretrained model, read in another process; key-value pairs, asked by key; and a paragraph in a few
    vectors for a small model, recited. Saves report.html and report.json.
    """
    from memwrite.cli._options import read_text
    from memwrite.demo.article import ARTICLE, QUESTION, available, remember
    from memwrite.demo.measure import PARAGRAPH, measure
    from memwrite.demo.pairs import PAIRS, pair_lines, parse_memory, parse_pairs, recall_pairs
    from memwrite.demo.report import save_report
    from memwrite.evaluation.recall import differences
    from memwrite.utils.atomic import make_folder

    pairs = parse_pairs(words) or PAIRS
    text = read_text(context) if context else PARAGRAPH.read_text(encoding="utf-8").strip()
    folder = Path(out)
    make_folder(folder)
    answers = [recall_pairs(*parse_memory(run), pairs, folder) for run in runs]
    missing = available(model)
    if missing:
        click.echo(f"Note: the part on a pretrained model is left out: {missing}.", err=True)
        remembered = None
    else:
        long = read_text(article) if article else ARTICLE.read_text(encoding="utf-8").strip()
        remembered = remember(model, writers, long, question or QUESTION, folder)
        click.echo(f"an article of {remembered.tokens} tokens, written and dropped, on {model}:\n")
        for line in remembered.lines():
            click.echo(line)
        click.echo()
    results = measure(config, text, folder)
    click.echo(f"original ({results.text_bytes} bytes):\n  {text}\n")
    click.echo("recalled from the state file alone:")
    pieces = differences(text, results.main.text)
    click.echo("  " + "".join(_marked(*piece) for piece in pieces) + "\n")
    for line in results.lines():
        click.echo(line)
    click.echo(f"\n{len(pairs)} pairs written, dropped, and asked for by key from the state alone:")
    for line in pair_lines(answers):
        click.echo(f"  {line}")
    save_report(results, answers, remembered, folder)
    click.echo(f"\nreport: {folder / 'report.html'}")


def _marked(kind: str, original: str, recalled: str) -> str:
    """Right text as it is; [-missing-] and {+wrong+} marked, in colour on a terminal."""
    if kind == "equal":
        return recalled
    missing = click.style(f"[-{original}-]", fg="red") if original else ""
    wrong = click.style(f"{{+{recalled}+}}", fg="yellow") if recalled else ""
    return missing + wrong
