"""What takes a while says so, to a log as well, and only where it was asked to."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest

from memwrite.utils import progress
from memwrite.utils.progress import announce, announcing, counting, show_progress, span, track


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.02)
    monkeypatch.setattr(progress, "PATIENCE", 0.02)


def test_a_log_gets_lines_with_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        for _ in track(range(4), "write"):
            time.sleep(0.03)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"write: 1 of 4 steps in 0 s, \S+ a second, about 0 s left", lines[0])
    assert len(lines) == 4


def test_steps_without_a_number_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        for _ in track(iter(range(2)), "write", "document"):
            time.sleep(0.03)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"write: 1 documents in 0 s, \S+ a second", lines[0])
    assert len(lines) == 2


def test_the_rate_is_that_of_late(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on finds most of its work done at once: what is left takes as long as before."""
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with show_progress(), counting(100_000, "write", "document") as bar:
        for seconds, done in ((1, 90_000), *[(10, 20)] * 8):
            now += seconds
            bar.update(done)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "write: 90160 of 100000 documents in 81 s, 2 a second, about 82 min left"


def test_times_are_in_units_that_a_person_reads() -> None:
    told = [span(seconds) for seconds in (0.4, 119, 120, 7199, 7200, 172799, 172800, 1e7)]
    assert told == ["0 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 days", "116 days"]


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
