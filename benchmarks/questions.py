"""Twelve short facts, each written into a memory and asked for by one question, on a model with a chat template.

    python benchmarks/questions.py MODEL [--writer "NAME PARAM=VALUE ..."] [--facts tried] [--json]

Beside the writers that are named it asks transformers itself with the text pasted before the question, the whole KV cache
as a state (which must give the same answers), and the model without the text. An answer is right if it holds one of the words
that are listed with its question, whatever else it says; read the answers, too. Greedy, one run. The facts "tried" are
those on which the writers' defaults were chosen, so that they say less than the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
import torch
from facts import MEASURED, TRIED, Fact

from memwrite import Memory
from memwrite.backbones.conversation import SEPARATOR
from memwrite.backbones.generation import text_of
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.plugins.registry import registry

LONGEST = 32


def right(answer: str, words: tuple[str, ...]) -> bool:
    """Say whether an answer holds one of the words."""
    return any(word in answer.lower() for word in words)


def pasted(backbone: TransformersBackbone, facts: Sequence[Fact]) -> list[str]:
    """Return the answers of transformers' own `generate` where each text stands before its question in one message."""
    tokenizer, answers = backbone.tokenizer, []
    for text, question, _ in facts:
        message = {"role": "user", "content": f"{text}{SEPARATOR}{question}"}
        ids = torch.tensor(
            [[i for piece in tokenizer.chat([message], True, _whole) for i in piece]]
        )
        new = backbone.model.generate(
            ids.to(backbone.info.device), attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=LONGEST, pad_token_id=backbone.info.eos_id,
        )[0, ids.shape[1] :]  # fmt: skip
        answers.append(tokenizer.decode(text_of(new.tolist(), backbone.info.end_ids)))
    return answers


def _whole(text: str) -> list[str]:
    return [text]


def remembered(
    model: str, backbone: TransformersBackbone, words: str, facts: Sequence[Fact]
) -> tuple[list[str], int]:
    """Return the answers from the states of a writer, and the bytes of all states together.

    Args:
        model: where the language model is.
        backbone: that model.
        words: the writer's name and its parameters, each as PARAM=VALUE.
        facts: what is asked.
    """
    name, *params = words.split()
    reader = registry().reader_for(name).name
    config = {"backbone": {"path": model}, "writer": {"name": name}, "reader": {"name": reader}}
    overrides = [f"writer.params.{param}" for param in params]
    memory = Memory.from_config(config, overrides, backbone=backbone)
    answers, held = [], 0
    for text, question, _ in facts:
        state = memory.write(text).state
        held += state.nbytes
        answers.append(memory.ask(state, question, max_new_tokens=LONGEST))
    return answers, held


@click.command()
@click.argument("model")
@click.option("--writer", "writers", multiple=True, help="Name and parameters: 'NAME PARAM=VALUE'.")
@click.option("--facts", "which", type=click.Choice(["measured", "tried"]), default="measured")
@click.option("--json", "as_json", is_flag=True, help="Print every answer as JSON.")
def main(model: str, writers: tuple[str, ...], which: str, as_json: bool) -> None:
    """Ask MODEL, a folder or hub id, for twelve facts."""
    facts = MEASURED if which == "measured" else TRIED
    backbone = Memory.from_config({"backbone": {"path": model}}).backbone
    rows: dict[str, tuple[list[str], int]] = {
        "text pasted, by transformers itself": (pasted(backbone, facts), 0)
    }
    for writer in ("full-context", "no-memory", *writers):
        rows[writer] = remembered(model, backbone, writer, facts)
    lines = []
    for row, (answers, held) in rows.items():
        count = sum(right(a, words) for a, (_, _, words) in zip(answers, facts, strict=True))
        lines.append(
            {"memory": row, "right": count, "of": len(facts), "bytes": held, "answers": answers}
        )
    same = rows["full-context"][0] == rows["text pasted, by transformers itself"][0]
    if as_json:
        click.echo(json.dumps({"rows": lines, "full context as transformers": same}, indent=1))
        return
    for line in lines:
        click.echo(
            f"{line['right']:>3} of {line['of']}  {line['bytes']:>12,} bytes  {line['memory']}"
        )
    click.echo(
        f"full context answers word for word as transformers itself: {'yes' if same else 'NO'}"
    )


if __name__ == "__main__":
    main()
