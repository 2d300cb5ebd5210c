"""The language report: anchors, budgets, resumption, and pairs that cannot be measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from memwrite_bench.language import cells, language, retrieval
from memwrite_bench.language.candidates import candidates
from memwrite_bench.language.cells import Result
from memwrite_bench.language.rows import row_of

from memwrite import Memory
from memwrite.cli.main import main
from memwrite.errors import InputError, PositionsExceeded
from memwrite.evaluation.value_kept import Prediction, predict
from memwrite.state import Tokens

BACKBONE: dict[str, Any] = {
    "type": "gpt2",
    "params": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64},
}
PROSE = "\n\n".join(f"Line {i} tells of {i * 7} things, and ends there." for i in range(6))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(PROSE)
    return path


def report(book: Path, *writers: str, **changes: Any) -> Any:
    given = {"writers": writers, "slots": (2, 4), "context": 20, "length": 10, **changes}
    return language(BACKBONE, [book], book.parent / "out", **given)


def test_a_report_has_the_anchors_and_every_budget(book: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        "backbone: {path: x}\nwriter: {name: gradient, params: {slots: 3, steps: 2}}\nreader: {name: prefix}\n"
    )
    made = report(book, "gradient", str(config), "delta")
    rows = {row.name: row for row in made.rows}
    assert [*rows] == ["no-memory", "full-context", "gradient 2", "gradient 4", "mine 3", "delta"]
    assert made.contexts == 6
    worth = rows["full-context"].bits
    for row in rows.values():
        assert row.reading is not None
        kept = row.kept
        assert kept is None if worth <= 0 else kept == pytest.approx(row.bits / worth)
    assert rows["no-memory"].bits == rows["no-memory"].state_bytes == 0
    assert rows["full-context"].reading.agreement == 1
    assert rows["gradient 4"].state_floats == 4 * 32
    assert (rows["gradient 4"].ratio, rows["delta"].ratio) == (20 / 4, None)
    assert made.reread_seconds > 0
    assert all(row.times_faster > 0 and row.disk_seconds > 0 for row in rows.values())
    assert [row.name for row in rows.values() if row.untrained] == [
        "gradient 2", "gradient 4", "mine 3", "delta",
    ]  # fmt: skip
    made.save(tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<svg") == 4
    assert "reading the context again" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["name"] for row in saved["rows"]] == [*rows]


def test_times_are_medians_over_batches_and_compared_within_each() -> None:
    (_, whole) = candidates([], [], [])[:2]
    prediction = Prediction((1.0,), (5,), 1)
    times = [(0.5, 1.0), (3.0, 4.0), (1.0, 7.0)]
    results = [
        Result(1, 8, 2, False, 1, 1, at_hand, from_disk, None, [prediction], [], "", "here")
        for at_hand, from_disk in times
    ]
    behind = [prediction] * 3
    row = row_of(whole, results, behind, behind, [8.0, 9.0, 2.0], 20)
    assert (row.first_token_seconds, row.disk_seconds, row.times_faster) == (1.0, 4.0, 3.0)


def test_only_the_beginning_of_a_long_passage_is_read_again(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_long = report(book, "delta", context=40, length=20)  # of the model's 64 positions
    assert all(row.recall is None for row in too_long.rows)
    monkeypatch.setattr(cells, "RECALLED", 5)
    (row,) = [row for row in report(book, "delta", context=40).rows if row.label == "delta"]
    assert row.recall is not None
    results = [cells.load(cell) for cell in (book.parent / "out" / "cells").glob("delta-*")]
    assert {len(p.choices) for result in results if result for p in result.again} == {4}


def test_what_is_measured_is_not_measured_again(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = report(book, "gradient")
    (torn, *_) = sorted((book.parent / "out" / "cells").glob("gradient-2-*"))
    torn.write_text(torn.read_text()[:40])
    measured: list[str] = []
    whole = cells.measure

    def counted(candidate: Any, *others: Any) -> Any:
        measured.append(candidate.name)
        return whole(candidate, *others)

    monkeypatch.setattr("memwrite_bench.language.measure", counted)
    again = report(book, "gradient")
    assert measured == ["gradient 2"]
    assert [row.bits for row in again.rows] == pytest.approx([row.bits for row in first.rows])
    report(book, "gradient", length=11, passages=1)
    assert len(measured) == 1 + 4


def test_a_pair_that_cannot_be_measured_says_why(book: Path) -> None:
    made = report(book, "gradient", slots=(60,))
    (row,) = [row for row in made.rows if row.label == "gradient"]
    assert row.reading is None
    assert "positions" in row.failure
    assert any("not measured" in line for line in made.lines())


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    from memwrite.tasks.base import Example

    beside = Memory.from_config({"backbone": BACKBONE})
    part = [Example([1, 2, 3], [[4, 5, 6]], [[-100, 5, 6]])]
    result = cells.measure(candidates(["no-memory"], [], [])[1], beside, part)
    (tmp_path / "cell.json").write_bytes(cells.as_json(result))
    assert cells.load(tmp_path / "cell.json") == result
    assert asdict(result)["failure"] == ""


def test_retrieval_predicts_as_the_model_does_behind_the_sentences_that_it_finds() -> None:
    """With all sentences found it is the text itself; the tokens of all stretches are predicted once."""
    writer, reader = {"name": "whole-text"}, {"name": "text"}
    memory = Memory.from_config({"backbone": BACKBONE, "writer": writer, "reader": reader}).eval()
    contexts = [[*b"One. Two two. Three"], [*b"A b c d. E f g h i."]]
    text = [[*b" and so on for more than one"], [*b" stretch of tokens, as it is"]]
    with torch.no_grad():
        state = memory.write(Tokens.from_rows(contexts)).state
        every, one = (
            retrieval.predict_by_retrieval(memory, state, contexts, text, count) for count in (9, 1)
        )
        whole = predict(memory, state, text)
    for found, expected in zip(every, whole, strict=True):
        assert found.bits == pytest.approx(expected.bits)
        assert (found.choices, found.right) == (expected.choices, expected.right)
    assert [len(found.bits) for found in one] == [len(found.bits) for found in every]
    assert one != every


def test_retrieval_is_in_the_report(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "STRETCH", 4)
    made = report(book, "bm25", sentences=(1, 9))
    made.save(book.parent / "out")  # both keep the same bytes
    rows = {row.name: row for row in made.rows}
    assert rows["bm25 9"].bits == pytest.approx(rows["full-context"].bits, abs=1e-3)
    assert rows["bm25 1"].recall is None


def test_texts_without_a_long_passage_are_refused(book: Path) -> None:
    with pytest.raises(InputError, match="no passage of 9010 tokens"):
        report(book, context=9000)


def test_passages_that_the_model_cannot_see_whole_are_refused(book: Path) -> None:
    book.write_text(book.read_text() * 2)
    with pytest.raises(
        PositionsExceeded, match="take 65 positions, but the model has only 64: lower"
    ):
        report(book, "delta", context=55, length=10)
    assert not (book.parent / "out").exists()


def test_the_command_writes_the_report(book: Path, tmp_path: Path) -> None:
    Memory.from_config({"backbone": BACKBONE}).save_run(tmp_path / "run")
    words = ["bench", "language", "gradient", "--backbone", str(tmp_path / "run" / "backbone")]
    words += ["--texts", str(book), "--out", str(tmp_path / "out"), "--slots", "2"]
    words += ["--context", "20", "--length", "10", "--contexts", "2"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "gradient 2" in result.output
    assert (tmp_path / "out" / "index.html").is_file()
    at = words.index("--slots")
    words[at : at + 2] = ["--ratios", "5,10"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "gradient 4" in result.output
    for wrong, why in (("5,21", "from 1 to the 20 tokens"), ("0", "from 1 to the 20 tokens")):
        words[at + 1] = wrong
        result = CliRunner().invoke(main, words)
        assert (result.exit_code, why in result.output) == (2, True), result.output
    result = CliRunner().invoke(main, [*words, "--slots", "2"])
    assert (result.exit_code, "give one of them" in result.output) == (2, True)
