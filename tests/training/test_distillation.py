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
from memwrite.config import SelfStudyConfig, load_config
from memwrite.errors import ConfigError
from memwrite.tasks.base import IGNORED, Batch
from memwrite.training import lora
from memwrite.training.distillation import Teacher
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
    output = training_loss(memory, given, Teacher(memory, given.context).predict(given))
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
    loss = training_loss(memory, given, Teacher(memory, given.context).predict(given)).losses[
        "target"
    ]
    assert abs(float(loss)) < 1e-12


def test_the_teacher_has_no_corrections_and_no_context_needs_none() -> None:
    """Else it would change with its pupil, down to where both say the same of everything."""
    memory = memory_of("forward", "prefix", slots=2)
    given = batch()
    before = Teacher(memory, given.context).predict(given)
    lora.attach(memory.model, replace(memory.config.backbone, lora_rank=2), seed=0)
    for module in memory.model.modules():
        if isinstance(module, lora.Correction):
            torch.nn.init.normal_(module.B)
    queries = Tokens.from_rows([[7, 8]])
    changed = memory.read(memory.writer.init(1), queries).logits
    after = Teacher(memory, given.context).predict(given)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(memory.read(memory.writer.init(1), queries).logits, changed)
    assert 0 in after.columns
    nothing = replace(given, context=Tokens.from_rows([[], [5]]))
    assert 0 not in Teacher(memory, nothing.context).predict(nothing).columns


def greedy(memory: Memory, ids: list[int], count: int) -> list[int]:
    """What the model alone goes on with, up to its end token."""
    new: list[int] = []
    ends = memory.backbone.info.end_ids or (memory.backbone.info.eos_id,)
    while len(new) < count and (not new or new[-1] not in ends):
        new.append(int(memory.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def test_the_teacher_writes_behind_the_context_in_sight() -> None:
    """Without a temperature worth the name, its texts are the model's first choices, and they alone are labelled."""
    memory = memory_of("forward", "prefix", slots=2)
    lora.attach(memory.model, replace(memory.config.backbone, lora_rank=2), seed=0)
    config = SelfStudyConfig(texts=2, length=5, temperature=1e-4, prompts=["ab", "c"])
    given, context = batch(), Tokens.from_rows([[1, 2, 3, 4], [5, 6]])
    texts = Teacher(memory, context).study(given, config)
    assert texts.context is given.context
    width = given.queries.ids.shape[-1]
    assert torch.equal(texts.queries.ids[:, :2, :width], given.queries.ids)
    assert torch.equal(texts.labels[:, :2, :width], given.labels)
    assert not texts.queries.mask[:, :2, width:].any()
    encoded = {tuple(memory.backbone.tokenizer.encode(prompt)) for prompt in config.prompts}
    for row, own in enumerate(CONTEXTS):
        seen = set()
        for number in (2, 3):
            real = texts.queries.mask[row, number]
            ids, labels = texts.queries.ids[row, number][real], texts.labels[row, number]
            begun = int((labels[real] == IGNORED).sum())
            prompt, written = ids[:begun].tolist(), ids[begun:].tolist()
            assert written == greedy(memory, own + prompt, 5)
            assert labels[real][begun:].tolist() == written
            assert (labels[~real] == IGNORED).all()
            seen.add(tuple(prompt))
        assert seen == encoded


def test_the_teacher_answers_its_own_questions() -> None:
    """An answer follows from the context, the question and what is put between them; an end token of the question goes."""
    memory = memory_of("forward", "prefix", slots=2)
    tokenizer = memory.backbone.tokenizer
    # The question of the first context ends at once.
    end = int(
        memory.model(torch.tensor([[*CONTEXTS[0], *tokenizer.encode("ab")]])).logits[0, -1].argmax()
    )
    memory.model.generation_config.eos_token_id = [end]
    assert end in memory.backbone.info.end_ids
    config = SelfStudyConfig(texts=1, length=3, temperature=1e-4, prompts=["ab"], answer="cd")
    given, between = batch(), tokenizer.encode("cd")
    texts = Teacher(memory, given.context).study(given, config)
    for row, own in enumerate(CONTEXTS):
        question = greedy(memory, [*own, *tokenizer.encode("ab")], 3)
        kept = question[:-1] if question[-1] in memory.backbone.info.end_ids else question
        asked = [*tokenizer.encode("ab"), *kept, *between]
        answer = greedy(memory, own + asked, 3)
        real = texts.queries.mask[row, 2]
        assert texts.queries.ids[row, 2][real].tolist() == asked + answer
        assert texts.labels[row, 2][real].tolist() == [
            *[IGNORED] * len(tokenizer.encode("ab")), *kept, *[IGNORED] * len(between), *answer
        ]  # fmt: skip
        assert row or not kept
    again = Teacher(memory, given.context).study(given, config)
    assert torch.equal(again.queries.ids, texts.queries.ids)


def test_its_texts_follow_from_the_contexts_alone() -> None:
    """Not from what was drawn before, which they leave as it is, nor from corrections that are being trained."""
    memory = memory_of("forward", "prefix", slots=2)
    given, config = batch(), SelfStudyConfig(texts=3, length=6, temperature=2.0)
    before = torch.get_rng_state()
    first = Teacher(memory, given.context).study(given, config)
    assert torch.equal(torch.get_rng_state(), before)
    lora.attach(memory.model, replace(memory.config.backbone, lora_rank=2), seed=0)
    for module in memory.model.modules():
        if isinstance(module, lora.Correction):
            torch.nn.init.normal_(module.B)
    torch.manual_seed(5)
    again = Teacher(memory, given.context).study(given, config)
    assert torch.equal(again.queries.ids, first.queries.ids)
    other = Tokens.from_rows([[1, 2, 3, 9], [5, 6]])
    assert not torch.equal(
        Teacher(memory, other).study(given, config).queries.ids, first.queries.ids
    )


def test_queries_of_one_dimension_get_texts_beside_them() -> None:
    memory, given = memory_of("forward", "prefix", slots=2), batch()
    flat = Batch(given.context, given.queries.map(lambda t: t[:, 0]), given.labels[:, 0])
    texts = Teacher(memory, flat.context).study(flat, SelfStudyConfig(texts=1, length=2))
    assert texts.queries.ids.shape[:2] == (2, 2)
    training_loss(memory, texts, Teacher(memory, flat.context).predict(texts)).loss.backward()


@pytest.mark.parametrize("texts", [0, 1])
def test_plain_text_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: int) -> None:
    """A writer learns from text that goes on, around a frozen model; the run folder says how. No text is written for an
    evaluation.
    """
    studied = []
    study = Teacher.study

    def counted(self: Teacher, given: Batch, config: SelfStudyConfig) -> Batch:
        studied.append(config)
        return study(self, given, config)

    monkeypatch.setattr(Teacher, "study", counted)
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
            "self_study": {"texts": texts, "length": 4},
        },
    }  # fmt: skip
    out = train(config)
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    # What a model of random weights writes itself teaches nothing of the text.
    assert texts or 0 < losses[-1] < losses[0]
    assert studied == [SelfStudyConfig(texts=1, length=4)] * (20 * texts)
    again = load_config(out / "config.yaml").training
    assert (again.objective, again.self_study.texts) == ("distillation", texts)


def test_a_model_whose_weights_are_trained_is_no_teacher() -> None:
    config = {"backbone": {**MODELS["llama"], "trainable": True}, "training": {"objective": "distillation"}}  # fmt: skip
    with pytest.raises(ConfigError, match="teacher that stays as it is"):
        load_config(config)
    with pytest.raises(ConfigError, match=r"training.objective = 'destilation'.*distillation"):
        load_config({"backbone": MODELS["llama"], "training": {"objective": "destilation"}})


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"self_study": {"texts": 1}}, "self_study needs a teacher"),
        ({"self_study": {"texts": -1}}, "texts of at least 0"),
        ({"self_study": {"length": 0}}, "length of at least 1"),
        ({"self_study": {"temperature": 0.0}}, "positive temperature"),
        ({"self_study": {"prompts": []}}, "at least one prompt"),
        ({"self_study": {"prompts": ["a", ""]}}, "none that is empty"),
        ({"self_study": {"answer": ""}}, "answer must be null"),
    ],
)
def test_wrong_self_study(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"backbone": MODELS["llama"], "training": training})
