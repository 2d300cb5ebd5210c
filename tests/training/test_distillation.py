"""The objective `distillation`: a memory is compared with the same model and the context in sight."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memwrite_specs.testing import MODELS
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.config import load_config
from memwrite.errors import ConfigError
from memwrite.tasks.base import IGNORED, Batch
from memwrite.training import lora
from memwrite.training.distillation import teacher
from memwrite.training.loss import training_loss
from memwrite.training.run import train

CONTEXTS = [[1, 2, 3, 4], [5, 6]]
QUERIES = [[[7, 8, 9], [10, 11]], [[12], [13, 14, 15]]]
LABELS = [[[7, 8, IGNORED], [IGNORED, 11]], [[12], [13, IGNORED, 15]]]


def memory_of(writer: str, reader: str, **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS["llama"], "dtype": "float64"},
            "writer": {"name": writer, "params": params},
            "reader": {"name": reader},
        }
    ).train()


def batch() -> Batch:
    queries = Tokens.from_rows([query for row in QUERIES for query in row])
    labels = torch.full_like(queries.ids, IGNORED)
    for number, row in enumerate(label for each in LABELS for label in each):
        labels[number, : len(row)] = torch.tensor(row)
    return Batch(
        Tokens.from_rows(CONTEXTS),
        queries.map(lambda tensor: tensor.reshape(2, 2, -1)),
        labels.reshape(2, 2, -1),
    )


def in_sight(memory: Memory, context: list[int], query: list[int]) -> Tensor:
    """Log-probabilities (T, V) of each token of the query behind the context, by the model alone."""
    logits = memory.model(torch.tensor([context + query])).logits[0]
    return logits[len(context) - 1 : -1].double().log_softmax(-1)


@pytest.mark.parametrize(("writer", "reader"), [("forward", "prefix"), ("compact", "key-value")])
def test_the_loss_is_the_divergence_from_the_context_in_sight(writer: str, reader: str) -> None:
    """By hand, one query after the other; a query's first token counts where something of the memory predicts it."""
    memory = memory_of(writer, reader, slots=2)
    given = batch()
    output = training_loss(memory, given, teacher(memory, given))
    state = memory.write(Tokens.from_rows(CONTEXTS)).state
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, (context, queries) in enumerate(zip(CONTEXTS, QUERIES, strict=True)):
        for query, labels in zip(queries, LABELS[row], strict=True):
            own = memory.read(state.rows(slice(row, row + 1)), Tokens.from_rows([query]))
            expected = in_sight(memory, context, query)
            for place, label in enumerate(labels):
                logits = own.first_logits if place == 0 else own.logits[:, place - 1]
                if label == IGNORED or logits is None:
                    continue
                found = logits[0].double().log_softmax(-1)
                total = total + (expected[place].exp() * (expected[place] - found)).sum()
                count += 1
    torch.testing.assert_close(output.losses["target"], total / count, atol=1e-6, rtol=1e-6)
    if writer == "forward":
        (gradient,) = torch.autograd.grad(output.loss, memory.writer.slots)
        (by_hand,) = torch.autograd.grad(total / count, memory.writer.slots)
        torch.testing.assert_close(gradient, by_hand, atol=1e-6, rtol=1e-5)


def test_the_whole_context_as_a_memory_has_nothing_to_learn() -> None:
    memory = memory_of("full-context", "key-value")
    given = batch()
    loss = training_loss(memory, given, teacher(memory, given)).losses["target"]
    assert abs(float(loss)) < 1e-12


def test_the_teacher_has_no_corrections_and_no_context_needs_none() -> None:
    """Else it would change with its pupil, down to where both say the same of everything."""
    memory = memory_of("forward", "prefix", slots=2)
    given = batch()
    before = teacher(memory, given)
    lora.attach(memory.model, replace(memory.config.backbone, lora_rank=2), seed=0)
    for module in memory.model.modules():
        if isinstance(module, lora.Correction):
            torch.nn.init.normal_(module.B)
    queries = Tokens.from_rows([[7, 8]])
    changed = memory.read(memory.writer.init(1), queries).logits
    after = teacher(memory, given)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(memory.read(memory.writer.init(1), queries).logits, changed)
    assert 0 in after.columns
    assert 0 not in teacher(memory, replace(given, context=Tokens.from_rows([[], [5]]))).columns


def test_plain_text_is_enough(tmp_path: Path) -> None:
    """A writer learns from text that goes on, around a frozen model; the run folder says how."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "and",
        "runs",
        "away",
        "from",
        "it",
    ]
    text = "\n\n".join(" ".join(words[i % 7 :] + words[: i % 5]) for i in range(80))
    (tmp_path / "text.txt").write_text(text)
    config = {
        "backbone": {**MODELS["llama"], "params": {**MODELS["llama"]["params"], "initializer_range": 0.3}},
        "writer": {"name": "forward", "params": {"slots": 2}},
        "reader": {"name": "prefix"},
        "task": {
            "name": "language",
            "params": {"files": [str(tmp_path / "text.txt")], "context": 16, "length": 8, "examples": 4},
        },
        "training": {
            "out": str(tmp_path / "run"), "steps": 20, "batch_size": 4, "warmup": 1, "every": 10,
            "learning_rate": 0.02, "objective": "distillation",
        },
    }  # fmt: skip
    out = train(config)
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert 0 < losses[-1] < losses[0]
    assert load_config(out / "config.yaml").training.objective == "distillation"


def test_a_model_whose_weights_are_trained_is_no_teacher() -> None:
    config = {"backbone": {**MODELS["llama"], "trainable": True}, "training": {"objective": "distillation"}}  # fmt: skip
    with pytest.raises(ConfigError, match="teacher that stays as it is"):
        load_config(config)
    with pytest.raises(ConfigError, match=r"training.objective = 'destilation'.*distillation"):
        load_config({"backbone": MODELS["llama"], "training": {"objective": "destilation"}})
