"""`memwrite bench`: measurements that become reports."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from memwrite_bench.finish import finish


def _numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Whole numbers with commas between them."""
    try:
        return None if value is None else tuple(int(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"'{value}' should be whole numbers with commas between them, as in 2,4,8"
        ) from None


def _slots(ratios: tuple[int, ...], context: int) -> tuple[int, ...]:
    """Return the slots that a context of so many tokens keeps at each ratio."""
    for ratio in ratios:
        if not 1 <= ratio <= context:
            raise click.BadParameter(
                f"{ratio} should be from 1 to the {context} tokens of --context",
                param_hint="--ratios",
            )
    return tuple(context // ratio for ratio in ratios)


@click.group()
def bench() -> None:
    """Measure, and make a report of it."""


@bench.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder for measurements and report.")
@click.option(
    "--pairs",
    callback=_numbers,
    help="N, pairs per context, as in 2,4,8; by default powers of two up to twice that of each run, and its own.",
)
@click.option(
    "--steps",
    callback=_numbers,
    help="K, steps per write, as in 1,2,5; by default those that each run was trained with. Writers without steps "
    "are measured once.",
)
@click.option(
    "--seeds", callback=_numbers, default="0,1,2", show_default=True, help="Of fresh contexts."
)
@click.option(
    "--contexts",
    default=256,
    show_default=True,
    type=click.IntRange(min=2),
    help="Contexts for each seed.",
)
@click.option("--device", help="cpu, cuda, ...; by default where each run was trained.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def capacity(
    runs: tuple[str, ...],
    out: str,
    pairs: tuple[int, ...] | None,
    steps: tuple[int, ...] | None,
    seeds: tuple[int, ...],
    contexts: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure what the run folders RUNS recall over N and K on fresh data, what it costs, and make one report.

    RUNS were trained to remember key-value pairs. Those whose configs differ in nothing but the seed are one group, with
    mean and interval over training seeds; runs of the writers full-context and no-memory are drawn as baselines.

    OUT gets index.html with everything in it, report.json, the plots as PNG files, and one file per measurement in
    cells. The same command goes on with what is unfinished; started several times at once, its processes share
    the work, and each of them ends when all is done. A run that is trained again is measured again.
    """
    from memwrite.utils.progress import show_progress
    from memwrite_bench.capacity import capacity as measure

    given = {"--pairs": pairs, "--steps": steps, "--seeds": seeds}
    words = ["memwrite", "bench", "capacity", *runs, "--out", out, "--contexts", str(contexts)]
    for name, numbers in given.items():
        words += [name, ",".join(map(str, numbers))] if numbers is not None else []
    words += ["--device", device] if device is not None else []
    with show_progress():
        report = measure(
            [Path(run) for run in runs],
            Path(out),
            pairs=pairs,
            steps=steps,
            seeds=seeds,
            contexts=contexts,
            device=device,
            command=shlex.join(words),
        )
    finish(report, Path(out), as_json)


@bench.command()
@click.argument("writers", nargs=-1)
@click.option("--backbone", required=True, help="Model folder, GGUF file, or name of a model.")
@click.option(
    "--texts", multiple=True, required=True, help="UTF-8 file of prose; may be given again."
)
@click.option("--out", required=True, help="Folder for measurements and report.")
@click.option(
    "--slots",
    callback=_numbers,
    help="Budgets, for each writer that counts its slots; 8,16,32 by default.",
)
@click.option(
    "--ratios",
    callback=_numbers,
    help="The same as tokens of a context for each slot: 4,8 keep a fourth and an eighth of it.",
)
@click.option(
    "--sentences",
    callback=_numbers,
    default="1,2",
    show_default=True,
    help="Budgets of bm25, found for each stretch of text.",
)
@click.option(
    "--contexts", default=24, show_default=True, type=click.IntRange(min=1), help="Passages."
)
@click.option(
    "--context", default=160, show_default=True, type=click.IntRange(min=1), help="Tokens of each."
)
@click.option(
    "--length",
    default=96,
    show_default=True,
    type=click.IntRange(min=2),
    help="Tokens behind it that are predicted.",
)
@click.option("--device", help="cpu, cuda, ...; cpu by default.")
@click.option("--dtype", help="Of the model: float32 by default, bfloat16, ...")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def language(
    writers: tuple[str, ...],
    backbone: str,
    texts: tuple[str, ...],
    out: str,
    slots: tuple[int, ...] | None,
    ratios: tuple[int, ...] | None,
    sentences: tuple[int, ...],
    contexts: int,
    context: int,
    length: int,
    device: str | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Measure what memories are worth to the text behind a passage, on a language model as it is, and make one report.

    WRITERS are names of writers, each with the reader of its states, YAML files with a writer and a reader, and bm25, which
    keeps the text and finds sentences in it. By default all that is installed is measured; what has parameters that nobody
    trained is marked. No memory at all and the whole KV cache kept are measured beside them.

    OUT gets index.html with everything in it, report.json, the plots as SVG files, and one file per measurement in cells.
    The same command goes on with what is unfinished.
    """
    from memwrite.utils.progress import show_progress
    from memwrite_bench.language import language as measure

    if slots is None:
        slots = _slots(ratios, context) if ratios else (8, 16, 32)
    elif ratios:
        raise click.UsageError("--slots and --ratios are the same budgets: give one of them")
    options = {"--device": device, "--dtype": dtype}
    words = ["memwrite", "bench", "language", *writers, "--backbone", backbone]
    words += [word for text in texts for word in ("--texts", text)]
    words += ["--out", out, "--slots", ",".join(map(str, slots))]
    words += ["--sentences", ",".join(map(str, sentences)), "--contexts", str(contexts)]
    words += ["--context", str(context), "--length", str(length)]
    words += [word for name, value in options.items() if value for word in (name, value)]
    chosen = {"path": backbone, "device": device, "dtype": dtype}
    with show_progress():
        report = measure(
            {name: value for name, value in chosen.items() if value is not None},
            [Path(text) for text in texts],
            Path(out),
            writers=writers,
            slots=slots,
            sentences=sentences,
            passages=contexts,
            context=context,
            length=length,
            command=shlex.join(words),
        )
    finish(report, Path(out), as_json)


@bench.command()
@click.argument("writers", nargs=-1)
@click.option("--backbone", required=True, help="Model folder, run folder, or name of a model.")
@click.option("--adapter", help="LoRA folder that is put into the model's weights.")
@click.option("--files", multiple=True, required=True, help="With questions; may be given again.")
@click.option(
    "--task",
    type=click.Choice(["squad", "qa", "locomo", "longmemeval", "memory-agent-bench"]),
    default="squad",
    show_default=True,
    help="What the files are: see the tasks of that name.",
)
@click.option(
    "--article", "articles", multiple=True, help="Only this article of SQuAD; may be given again."
)
@click.option("--out", required=True, help="Folder for measurements and report.")
@click.option(
    "--slots",
    callback=_numbers,
    default="8,16,32",
    show_default=True,
    help="Budgets, for each writer that counts its slots.",
)
@click.option(
    "--sentences",
    callback=_numbers,
    default="1,2",
    show_default=True,
    help="Budgets of bm25, found for each question.",
)
@click.option(
    "--contexts", default=24, show_default=True, type=click.IntRange(min=1), help="Passages."
)
@click.option("--device", help="cpu, cuda, ...; cpu by default.")
@click.option("--dtype", help="Of the model: float32 by default, bfloat16, ...")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def questions(
    writers: tuple[str, ...],
    backbone: str,
    adapter: str | None,
    files: tuple[str, ...],
    task: str,
    articles: tuple[str, ...],
    out: str,
    slots: tuple[int, ...],
    sentences: tuple[int, ...],
    contexts: int,
    device: str | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Ask memories of passages on a language model that answers from a text in sight, and make one report.

    WRITERS are as in `memwrite bench language`. The model alone and the whole KV cache are asked beside them.

    OUT gets index.html with everything in it, report.json with all answers, and one file per measurement in cells. The same
    command goes on with what is unfinished.
    """
    from memwrite.config import part_config
    from memwrite.plugins import registry
    from memwrite.utils.progress import show_progress
    from memwrite_bench.questions import questions as measure

    params = {
        "files": list(files),
        **({"articles": list(articles)} if articles else {"held_out": 1.0}),
    }
    config = part_config(registry().task(task).config, params, "task.params")
    chosen = {"path": backbone, "adapter": adapter, "device": device, "dtype": dtype}
    options = {"--adapter": adapter, "--task": task, "--device": device, "--dtype": dtype}
    words = ["memwrite", "bench", "questions", *writers, "--backbone", backbone]
    words += [word for file in files for word in ("--files", file)]
    words += [word for title in articles for word in ("--article", title)]
    words += ["--out", out, "--slots", ",".join(map(str, slots))]
    words += ["--sentences", ",".join(map(str, sentences)), "--contexts", str(contexts)]
    words += [word for name, value in options.items() if value for word in (name, value)]
    with show_progress():
        report = measure(
            {name: value for name, value in chosen.items() if value is not None},
            config,
            Path(out),
            writers=writers,
            slots=slots,
            sentences=sentences,
            passages=contexts,
            command=shlex.join(words),
        )
    finish(report, Path(out), as_json)
