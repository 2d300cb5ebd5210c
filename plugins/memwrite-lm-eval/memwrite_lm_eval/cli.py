"""`memwrite lm-eval`: tasks of the lm-evaluation-harness, answered from memories."""

from __future__ import annotations

import json
import logging
from typing import Any

import click

from memwrite.cli._config import Source, config_options


def _metadata(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any]:
    try:
        found = json.loads(value or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.BadParameter("should be a JSON object, as in '{\"max_seq_lengths\": [4096]}'")
    return found


@click.command("lm-eval")
@config_options
@click.option(
    "--tasks",
    required=True,
    help="Names of tasks with commas between them; a folder of YAML files stands for all tasks in it.",
)
@click.option("--num-fewshot", type=click.IntRange(min=0), help="Examples; by default the task's.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many documents of each task.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--context-field", help="Field of the documents that holds the context.")
@click.option("--apply-chat-template", is_flag=True, help="Put prompts as a user's message.")
@click.option("--metadata", callback=_metadata, help="For tasks that want some, as JSON.")
@click.option("--device", help="cpu, cuda, ...; by default where it was trained.")
@click.option("--json", "as_json", is_flag=True, help="Print the harness's results as JSON.")
def lm_eval(
    source: Source,
    overrides: tuple[str, ...],
    tasks: str,
    num_fewshot: int | None,
    limit: int | None,
    batch_size: int,
    context_field: str | None,
    apply_chat_template: bool,
    metadata: dict[str, Any],
    device: str | None,
    as_json: bool,
) -> None:
    """Evaluate the memory CONFIG on tasks of the lm-evaluation-harness.

    CONFIG is a YAML file or a run folder; OVERRIDES change it. Without one, --model and --writer say what to build. Each
    context is written once, thrown away, and all its questions are asked of the memory. With the writers full-context and
    no-memory the same command measures the model with the context in sight, and without it.
    """
    from lm_eval.utils import handle_non_serializable, make_table

    from memwrite.memory import Memory
    from memwrite_lm_eval.model import MemoryLM
    from memwrite_lm_eval.running import load_tasks, run

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    changes = [*overrides, *([] if device is None else [f"backbone.device={device}"])]
    chosen = load_tasks(tasks.split(","), metadata)
    memory = Memory.from_config(source, changes)
    if memory.caveat:
        click.echo(f"Note: {memory.caveat}.", err=True)
    model = MemoryLM(memory, batch_size, context_field)
    results = run(model, chosen, num_fewshot, limit, apply_chat_template)
    if as_json:
        found = {**results, "contexts_written": model.written, "questions_asked": model.asked}
        click.echo(json.dumps(found, default=handle_non_serializable))
        return
    click.echo(make_table(results))
    if results.get("groups"):
        click.echo(make_table(results, "groups"))
    click.echo(f"{model.asked} questions on {model.written} contexts, each written once")
