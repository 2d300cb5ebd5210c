"""Value kept: its arithmetic, its anchors, and what the evaluation of the task `language` measures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from memwrite import Memory
from memwrite.backbones.tokenizers import load_tokenizer
from memwrite.cli.main import main
from memwrite.errors import InputError
from memwrite.evaluation import language
from memwrite.evaluation.value_kept import predict, value_kept
from memwrite.state import Tokens
from memwrite.tasks.base import IGNORED
from memwrite.tasks.language import LanguageConfig, LanguageTask

PROSE = "\n\n".join(
    [
        "A short one.",
        *(f"Line {i} tells of {i * 7} things, and ends. It has two." for i in range(9)),
    ]
)
BACKBONE = {
    "type": "gpt2",
    "params": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "dtype": "float64",
}


def memory(writer: str, reader: str) -> Memory:
    torch.manual_seed(0)
    parts = {"writer": {"name": writer}, "reader": {"name": reader}}
    return Memory.from_config({"backbone": BACKBONE, **parts})


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(PROSE)
    return path


def task(book: Path, **params: int) -> LanguageTask:
    config = LanguageConfig(files=[str(book)], held_out=1.0, **params)
    return LanguageTask(config, load_tokenizer("bytes"))


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(0, 9), st.floats(-9, 9)), min_size=1))
def test_value_kept_is_nought_without_memory_and_one_in_sight(
    bits: list[tuple[float, float, float]],
) -> None:
    visible = [b for b, _, _ in bits]
    without = [b + worth + 0.1 for b, worth, _ in bits]
    kept = [value_kept(without, own, visible) for own in (without, visible)]
    assert [one and one.mean for one in kept] == [0, pytest.approx(1)]
    some = value_kept(without, [b + change for b, _, change in bits], visible)
    assert some is not None
    assert some.least - 1e-9 <= some.mean <= some.most + 1e-9
    if len(bits) < 3:
        assert some.interval is None
    else:
        assert some.interval is not None
        assert some.least - 1e-9 <= some.interval[0] <= some.interval[1] <= some.most + 1e-9


def test_value_kept_weighs_contexts_by_what_they_are_worth() -> None:
    kept = value_kept([10, 10, 10], [7, 9, 12], [4, 8, 11])
    assert kept is not None
    assert kept.mean == pytest.approx((3 + 1 - 2) / (6 + 2 - 1))
    assert (kept.least, kept.most, kept.helped) == (0.5, 0.5, 2)
    assert value_kept([1, 2], [1, 1], [2, 1.5]) is None


@pytest.mark.parametrize("opening", [(), (256, 7)])
def test_a_text_is_predicted_as_by_one_run_of_the_model(
    opening: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opening of a text stands once: before the context, or before the text where there is no memory."""
    full, none = memory("full-context", "key-value"), memory("no-memory", "no-memory")
    context, texts = [1, 2, 3, 4], [[5, 6, 7], [8, 9, 10, 11]]
    for own in (full, none):
        monkeypatch.setattr(own.backbone.tokenizer, "opening", opening, raising=False)
        model, seen = own.backbone, [*opening, *context] if own is full else [*opening]
        state = own.write(Tokens.from_rows([[*opening, *context]] * 2)).state
        for text, prediction in zip(texts, predict(own, state, texts), strict=True):
            hidden = model.forward(model.embed(torch.tensor([[*seen, *text]]))).hidden
            logits = model.logits(hidden)[0, len(seen) : -1]
            bits = -logits.log_softmax(-1)[range(len(text) - 1), text[1:]].sum() / math.log(2)
            assert sum(prediction.bits) == pytest.approx(float(bits))
            assert prediction.choices == tuple(logits.argmax(-1).tolist())


def test_passages_lie_within_a_paragraph_where_it_is_long_enough(book: Path) -> None:
    examples = task(book, context=20, length=10, examples=50).evaluation()
    codec = load_tokenizer("bytes")
    assert len(examples) == 9  # the short paragraph and its neighbours make no passage of their own
    for number, example in enumerate(examples[i] for i in range(9)):
        (query,), (labels,) = example.queries, example.labels
        text = codec.decode([*example.context, *query])
        assert text == PROSE.split("\n\n")[number + 1][:30]
        assert labels == [IGNORED, *query[1:]]
    across = task(book, context=60, length=40, examples=50).evaluation()
    texts = [codec.decode([*across[i].context, *across[i].queries[0]]) for i in range(len(across))]
    assert all(len(text) == 100 and text in PROSE for text in texts)
    assert len({PROSE.index(text) for text in texts}) == len(texts) > 2
    assert len(task(book, context=60, length=40, examples=2).evaluation()) == 2


def test_passages_are_taken_from_each_file_in_turn(tmp_path: Path) -> None:
    letters = {"a": 3, "b": 1, "c": 2}  # paragraphs of each file
    for letter, count in letters.items():
        (tmp_path / letter).write_text("\n\n".join([letter * 30] * count))
    files = [str(tmp_path / letter) for letter in letters]
    config = LanguageConfig(files=files, held_out=1.0, context=20, length=10, examples=5)
    codec = load_tokenizer("bytes")
    examples = LanguageTask(config, codec).evaluation()
    firsts = [codec.decode(examples[i].queries[0])[0] for i in range(len(examples))]
    assert firsts == ["a", "b", "c", "a", "c"]


def test_the_kept_context_is_worth_itself_and_nothing_is_worth_nothing(book: Path) -> None:
    examples = task(book, context=24, length=12).evaluation()
    kept, none = (
        language.evaluate(memory(*pair), examples)
        for pair in (("full-context", "key-value"), ("no-memory", "no-memory"))
    )
    for found, same in ((kept, "context visible"), (none, "no memory")):
        own, anchor = found.readings["memory"], found.readings[same]
        assert own == anchor
        assert found.readings["unwritten"] == found.readings["no memory"]
    assert kept.readings["memory"].agreement == 1
    assert none.recall == none.recall_without
    assert kept.state_bytes > none.state_bytes == 0
    assert "another's state" in kept.readings
    assert any(line.startswith("context visible") for line in kept.lines())


def test_a_text_that_is_too_short_is_said_to_be(book: Path) -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        language.evaluate(
            memory("no-memory", "no-memory"), task(book, context=9000, length=12).evaluation()
        )


def test_the_command_scores_a_run_by_value_kept(book: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    memory("full-context", "key-value").save_run(run)
    params = [f"task.params.files=[{book}]", "task.params.context=24", "task.params.length=12"]
    result = CliRunner().invoke(main, ["eval", str(run), "task.name=language", *params])
    assert result.exit_code == 0, result.output
    assert "value kept" in result.output
    assert "another's state" in result.output
