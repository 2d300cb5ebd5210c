"""The questions report: anchors, budgets, scores by hand, resumption, and what cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from memwrite_bench.questions import cells, questions

from memwrite.cli.main import main
from memwrite.config import part_config
from memwrite.errors import ConfigError, InputError, PositionsExceeded
from memwrite.evaluation.words import word_f1, word_match
from memwrite.plugins import registry

BACKBONE: dict[str, Any] = {
    "type": "gpt2",
    "params": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128},
}
WORDS = ("red", "old", "far")


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    """Three articles of one paragraph and two questions, one of which nobody can answer."""
    articles = [
        {
            "title": word,
            "paragraphs": [
                {
                    "context": f"It is {word}. It rains.",
                    "qas": [
                        {"question": "What?", "answers": [{"text": word}, {"text": f"so {word}"}]},
                        {"question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
        for word in WORDS
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": articles}))
    return path


def report(squad: Path, *writers: str, **changes: Any) -> Any:
    params = {"files": [str(squad)], "held_out": 1.0, **changes.pop("task", {})}
    config: Any = part_config(registry().task("squad").config, params, "task.params")
    given = {"writers": writers, "slots": (2, 4), "sentences": (1,), **changes}
    return questions(BACKBONE, config, squad.parent / "out", **given)


def test_a_report_has_the_anchors_and_every_budget(squad: Path) -> None:
    """Every question is scored by its nearest right answer, and each group by itself."""
    made = report(squad, "compact", "bm25")
    names = ["context removed, no memory", "context visible", "compact 2", "compact 4", "bm25 1"]
    assert [row.name for row in made.rows] == names
    assert (made.contexts, made.questions) == (3, 6)
    assert made.groups == {"with an answer": 3, "without an answer": 3}
    right = [answers for word in WORDS for answers in ((word, f"so {word}"), ("unanswerable",))]
    assert made.right == right
    for row in made.rows:
        f1 = [word_f1(*pair) for pair in zip(row.answers, right, strict=True)]
        exact = [word_match(*pair) for pair in zip(row.answers, right, strict=True)]
        assert row.f1 == pytest.approx(sum(f1) / 6)
        assert row.exact_match == pytest.approx(sum(exact) / 6)
        assert row.groups["with an answer"][0] == pytest.approx(sum(f1[::2]) / 3)
    removed, visible, *_ = made.rows
    assert removed.state_bytes == 0 < visible.state_bytes
    assert len({*removed.answers[::2]}) == 1  # nothing of the passage is known to it
    heads = made.lines()[0].split("  ")
    assert {"F1 with an answer (3)", "F1 without an answer (3)"} <= {head.strip() for head in heads}
    made.save(squad.parent / "out")
    page = (squad.parent / "out" / "index.html").read_text()
    assert "context visible" in page
    assert "F1 with an answer (3)" in page


def test_known_answers_are_scored_by_hand(squad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(candidate: Any, beside: Any, part: Any) -> Any:
        answers = [text for e in part for text in (e.questions[0].answers[1], "red")]
        return cells.Result(len(part), answers, 8, False, 3.0, 6.0, "", "here")

    monkeypatch.setattr("memwrite_bench.questions.measure", measured)
    row = report(squad).rows[0]
    assert (row.f1, row.exact_match) == (0.5, 0.5)
    assert row.groups == {"with an answer": (1.0, 1.0), "without an answer": (0.0, 0.0)}
    assert (row.state_bytes, row.write_seconds, row.answer_seconds) == (8, 1.0, 1.0)


def test_what_is_measured_is_not_measured_again(
    squad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = report(squad, "compact")

    def never(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr("memwrite_bench.questions.measure", never)
    assert report(squad, "compact") == first
    for path in (squad.parent / "out" / "cells").iterdir():
        path.write_text("{")
    with pytest.raises(AssertionError, match="measured again"):
        report(squad, "compact")


def test_an_answer_is_that_of_an_evaluation(squad: Path) -> None:
    """Batched with others of other lengths, as asked alone."""
    whole = report(squad, "compact", slots=(4,))
    for number, word in enumerate(WORDS):
        alone = report(squad, "compact", slots=(4,), task={"articles": [word], "held_out": 0.1})
        for row, own in zip(whole.rows, alone.rows, strict=True):
            assert own.answers == row.answers[2 * number : 2 * number + 2]


def test_what_cannot_be_asked_is_refused(squad: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to ask"):
        report(squad, task={"held_out": 0.0})
    long = tmp_path / "long.json"
    long.write_text(squad.read_text().replace("It rains", "It rains" * 30))
    with pytest.raises(PositionsExceeded, match="a passage and its question"):
        report(long)
    (tmp_path / "story").write_text("1 Mary ran.\n2 Who?\tMary\t1\n")
    babi: Any = part_config(
        registry().task("babi").config, {"files": [str(tmp_path / "story")]}, "task.params"
    )
    with pytest.raises(ConfigError, match="no phrases"):
        questions(BACKBONE, babi, tmp_path / "out")


def test_the_command(squad: Path, tmp_path: Path) -> None:
    from memwrite import Memory

    folder = tmp_path / "model"
    built = Memory.from_config({"backbone": BACKBONE})
    built.backbone.save(folder, built.backbone.info.dtype)
    words = ["bench", "questions", "h2o", "--backbone", str(folder), "--files", str(squad)]
    words += ["--article", "old", "--out", str(tmp_path / "out"), "--slots", "4", "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    made = json.loads(done.output)
    assert [row["name"] for row in made["rows"]][2:] == ["h2o 4"]
    assert made["questions"] == 2
    assert "--article old" in made["command"]
    wrong = CliRunner().invoke(main, [*words, "--article", "new"])
    assert wrong.exit_code == 2
    assert "no file has an article 'new'" in wrong.output
