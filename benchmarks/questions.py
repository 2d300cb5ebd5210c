"""Twelve short facts, each written into a memory and asked for by one question, on a model with a chat template.

    python benchmarks/questions.py MODEL [--writer "NAME PARAM=VALUE ..."] [--json]

Beside the writers that are named it asks transformers itself with the text pasted before the question, the whole KV cache
as a state (which must give the same answers), and the model without the text. An answer is right if it holds one of the words
that are listed with its question, whatever else it says; read the answers, too. Greedy, one run.
"""

from __future__ import annotations

import json

import click
import torch

from memwrite import Memory
from memwrite.backbones.conversation import SEPARATOR
from memwrite.backbones.generation import text_of
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.plugins.registry import registry

LONGEST = 32
#: Text, question, and words of which a right answer has one.
FACTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "The bakery on Mill Lane opens at six in the morning and closes at two in the afternoon. On Mondays it stays shut, "
        "because the oven is cleaned.",
        "On which day is the bakery shut?",
        ("monday",),
    ),
    (
        "Our ferry to the island of Torran leaves from pier nine. Tickets cost fourteen euros and are sold on board. Dogs "
        "travel free of charge.",
        "From which pier does the ferry leave?",
        ("nine", "9"),
    ),
    (
        "Doctor Ines Calder keeps three parrots in her practice. The oldest one, called Biscuit, can whistle the national "
        "anthem of Portugal.",
        "What is the name of the oldest parrot?",
        ("biscuit",),
    ),
    (
        "In the north tower of the castle there is a bell of bronze that was cast in 1687. It cracked in a fire and has not "
        "been rung since.",
        "In which year was the bell cast?",
        ("1687",),
    ),
    (
        "The spare key to the archive is in the blue teapot on the second shelf of the kitchen. Please put it back after use.",
        "Where is the spare key to the archive?",
        ("teapot",),
    ),
    (
        "Members may borrow up to seven books at a time. Whoever keeps a book for longer than four weeks pays a fee of "
        "thirty cents for each day.",
        "How many books may a member borrow at a time?",
        ("seven", "7"),
    ),
    (
        "The village of Oderlin is known for its violins. Its workshop was founded by Marta Voss, who had learnt the craft in "
        "Cremona as a young woman.",
        "Who founded the workshop in Oderlin?",
        ("marta", "voss"),
    ),
    (
        "The expedition crossed the desert of Karrah with eleven camels and two guides. Water was the problem: on the fifth "
        "day they had only six litres left.",
        "How many camels did the expedition have?",
        ("eleven", "11"),
    ),
    (
        "To reset the pump, hold the green button for ten seconds until the lamp turns yellow. The red button is only for "
        "emergencies.",
        "Which button resets the pump?",
        ("green",),
    ),
    (
        "The new stadium in Larkhaven seats forty thousand people. Its roof is covered with solar panels, which light the "
        "whole district at night.",
        "What is the roof of the stadium covered with?",
        ("solar", "panels"),
    ),
    (
        "Ravi grows saffron on the roof of his house in Leeds. Last autumn he harvested ninety grams, enough for all the "
        "restaurants in his street.",
        "What does Ravi grow on the roof of his house?",
        ("saffron",),
    ),
    (
        "The committee meets in room 4B every second Thursday. Its chair is Helen Okafor. Minutes are sent to all "
        "members within three days.",
        "Who is the chair of the committee?",
        ("helen", "okafor"),
    ),
)


def right(answer: str, words: tuple[str, ...]) -> bool:
    """Say whether an answer holds one of the words."""
    return any(word in answer.lower() for word in words)


def pasted(backbone: TransformersBackbone) -> list[str]:
    """Return the answers of transformers' own `generate` where each text stands before its question in one message."""
    tokenizer, answers = backbone.tokenizer, []
    for text, question, _ in FACTS:
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


def remembered(model: str, backbone: TransformersBackbone, words: str) -> tuple[list[str], int]:
    """Return the answers from the states of a writer, and the bytes of all states together.

    Args:
        model: where the language model is.
        backbone: that model.
        words: the writer's name and its parameters, each as PARAM=VALUE.
    """
    name, *params = words.split()
    reader = registry().reader_for(name).name
    config = {"backbone": {"path": model}, "writer": {"name": name}, "reader": {"name": reader}}
    overrides = [f"writer.params.{param}" for param in params]
    memory = Memory.from_config(config, overrides, backbone=backbone)
    answers, held = [], 0
    for text, question, _ in FACTS:
        state = memory.write(text).state
        held += state.nbytes
        answers.append(memory.ask(state, question, max_new_tokens=LONGEST))
    return answers, held


@click.command()
@click.argument("model")
@click.option("--writer", "writers", multiple=True, help="Name and parameters: 'NAME PARAM=VALUE'.")
@click.option("--json", "as_json", is_flag=True, help="Print every answer as JSON.")
def main(model: str, writers: tuple[str, ...], as_json: bool) -> None:
    """Ask MODEL, a folder or hub id, for twelve facts."""
    backbone = Memory.from_config({"backbone": {"path": model}}).backbone
    rows: dict[str, tuple[list[str], int]] = {
        "text pasted, by transformers itself": (pasted(backbone), 0)
    }
    for writer in ("full-context", "no-memory", *writers):
        rows[writer] = remembered(model, backbone, writer)
    lines = []
    for row, (answers, held) in rows.items():
        count = sum(right(a, words) for a, (_, _, words) in zip(answers, FACTS, strict=True))
        lines.append(
            {"memory": row, "right": count, "of": len(FACTS), "bytes": held, "answers": answers}
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
