"""What takes a while says so, to a log as well, and only where it was asked to."""

from __future__ import annotations

import time

import pytest

from memwrite.utils import progress
from memwrite.utils.progress import announce, announcing, show_progress, track


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.02)
    monkeypatch.setattr(progress, "PATIENCE", 0.02)


def test_a_log_gets_lines_with_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        for _ in track(range(4), "write"):
            time.sleep(0.03)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("write: 1 of 4 steps in 0 s, about 0 s left")
    assert len(lines) == 4


def test_steps_without_a_number_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        for _ in track(iter(range(2)), "write", "document"):
            time.sleep(0.03)
    assert capsys.readouterr().err.splitlines() == [
        "write: 1 documents in 0 s",
        "write: 2 documents in 0 s",
    ]


def test_what_is_quick_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 60)
    monkeypatch.setattr(progress, "PATIENCE", 60)
    with show_progress(), announcing("Loading"):
        assert [*track(range(3), "write")] == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_waiting_is_announced_until_it_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(), announcing("Loading 'x'"):
        time.sleep(0.1)
    told = capsys.readouterr().err
    assert told.startswith("Loading 'x' ... 0 s\n")
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_library_call_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with announcing("Loading"):
        for _ in track(range(2), "write"):
            time.sleep(0.05)
    announce("Converting")
    assert capsys.readouterr().err == ""
