"""`memwrite write`: a text into a state file, or many documents into a store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memwrite.cli._config import Source, config_options
from memwrite.cli._options import check_keeps, once, read_text

if TYPE_CHECKING:
    from memwrite.memory import Memory
    from memwrite.plugins import WriteReport
    from memwrite.protocols import WriteOutput


@click.command()
@config_options
@click.option(
    "--context",
    multiple=True,
    callback=once,
    help="UTF-8 text file to write; - for standard input.",
)
@click.option(
    "--input",
    "documents",
    multiple=True,
    callback=once,
    help='JSONL file to write, {"id": ..., "text": ...} a line, or parquet; a pattern or URL of such files; a dataset.',
)
@click.option(
    "--text-field", default="text", show_default=True, help="Name of what --input is to write."
)
@click.option(
    "--id-field",
    default="id",
    show_default=True,
    help="Name of what the memories of --input are called by.",
)
@click.option("--onto", help="State file to go on from with --context, of the same writer.")
@click.option("--out", required=True, help="State file to make, or the store for --input.")
@click.option(
    "--batch-size",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="Documents of --input that are written together.",
)
@click.option("--days", type=click.FloatRange(min=0), help="Until what --input writes expires.")
@click.option(
    "--keep",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Earlier states that --input keeps of a memory that it writes again.",
)
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(["local", "ray"]),
    help="What writes --input: this process, or those of torchrun; or a cluster of Ray.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Of Ray; by default one for each processor or, on GPUs, each GPU.",
)
@click.option(
    "--raw", is_flag=True, help="Write mere text, to be continued, also for a model that chats."
)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def write(
    source: Source,
    overrides: tuple[str, ...],
    context: str | None,
    documents: str | None,
    text_field: str,
    id_field: str,
    onto: str | None,
    out: str,
    batch_size: int,
    days: float | None,
    keep: int,
    engine: str,
    workers: int | None,
    raw: bool,
    as_json: bool,
) -> None:
    """Write a text into a memory state, or many documents into a store of memories.

    CONFIG is a YAML file or a run folder; OVERRIDES change it, as in writer.params.slots=8. Without one, --model and
    --writer say what to build.

    With --context the text becomes one state file. With --input each line's text becomes a memory in the store OUT,
    under the line's id (its number, if it has none): a file, or a URL like s3://bucket/memories. The same command again
    writes what is missing or has another text, so it may be interrupted. Lines that cannot be written are reported and
    skipped; the exit code is then 3. torchrun --nproc-per-node 2 -m memwrite write ... shares the work, and
    --engine ray gives it to a cluster of Ray.

    --input takes a JSONL file (also compressed) or a parquet file, many as in 'docs/*.parquet' or 's3://bucket/*.jsonl',
    the folder of a saved dataset, or hub:NAME[:SPLIT], a dataset on the Hugging Face hub. Of many files, lines without
    an id are called by file and number, as in a.jsonl:17.
    """
    if (context is None) == (documents is None):
        raise click.UsageError("give either --context, a text, or --input, a file of documents")
    if onto is not None and context is None:
        raise click.UsageError("--onto goes with --context")
    if engine == "ray" and documents is None:
        raise click.UsageError("--engine ray goes with --input")
    if workers is not None and engine != "ray":
        raise click.UsageError("--workers goes with --engine ray")
    if documents is not None:
        from memwrite.cli.documents import write_files

        fields = {"text_field": text_field, "id_field": id_field}
        write_files(
            source, overrides, documents, fields, out, batch_size, days, keep, engine, workers, raw, as_json
        )  # fmt: skip
        return
    assert context is not None
    change_state(source, overrides, context, onto, out, as_json, raw=raw)


def change_state(
    source: Source,
    overrides: tuple[str, ...],
    context: str,
    before: str | None,
    out: str,
    as_json: bool,
    *,
    raw: bool = False,
    forget: bool = False,
) -> None:
    """Write the text in `context` into the state file `before`, or none, or take it out of that, and report."""
    text = read_text(context)
    from memwrite.utils.atomic import check_target

    files = [context, *([source] if isinstance(source, str) else []), *([before] if before else [])]
    check_target(Path(out), *files)
    from memwrite.checkpoints.state_file import load_state
    from memwrite.memory import Memory
    from memwrite.utils.cpu import tuned_cpu

    memory = Memory.from_config(source, overrides)
    check_keeps(memory)
    memory.chat = memory.chat and not raw
    state = None if before is None else memory.adopt(load_state(before), before)
    tokens = memory.encode(text, state=state)
    if forget:
        assert state is not None
        written = memory.forget(tokens, state)
    else:
        with tuned_cpu():
            written = memory.write(tokens, state)
    memory.save(written.state, out)
    report: dict[str, Any] = {
        "out": out,
        "text_bytes": len(text.encode()),
        "tokens": int(tokens.lengths),
        "state": {name: list(shape) for name, shape in written.state.spec.shapes.items()},
        "state_bytes": written.state.nbytes,
        **{name: float(values[-1, 0]) for name, values in written.trace.items() if len(values)},
        "steps": max((len(values) for values in written.trace.values()), default=0),
    }
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(
        f"{report['text_bytes']} bytes of text ({report['tokens']} tokens){' forgotten' if forget else ''} -> {out}: "
        f"{report['state_bytes']} bytes of state"
    )
    told = _told(memory, written)
    for fact in told.facts:
        click.echo(fact)
    for note in () if forget else (*told.notes, *_notes(memory, report)):
        click.echo(f"Note: {note}", err=True)


def _told(memory: Memory, written: WriteOutput) -> WriteReport:
    """Return what the writer itself says about the write of one text."""
    from memwrite.plugins import WriteReport
    from memwrite.plugins.registry import registry

    tell = registry().writer(memory.config.writer.name).report
    if tell is None:
        return WriteReport()
    return tell({name: values[:, 0] for name, values in written.trace.items()})


def _notes(memory: Memory, report: dict[str, Any]) -> Iterator[str]:
    """Say what the state may lack of the text, whatever the writer says itself."""
    if memory.caveat:
        yield f"{memory.caveat}."
    positions = memory.backbone.info.positions
    room = positions - memory.writer.reserved_positions
    if report["tokens"] > room:
        yield (
            f"the text is longer than the model's {positions} positions, so it was written in chunks of {room} "
            f"tokens; later chunks may overwrite earlier ones."
        )
