"""How a law is held: outcomes, reports that people can read, and limits of time."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import strategies as st
from memwrite_specs import LAWS
from memwrite_specs import hypothesis_driver as search
from memwrite_specs.forked import Witness
from memwrite_specs.law import Law, LawBroken
from memwrite_specs.mutants import MUTANTS
from memwrite_specs.object_digest import knowledge
from memwrite_specs.pair import Pair
from memwrite_specs.pytest_binding import bind, pair_of
from memwrite_specs.reference import READERS, WRITERS, BagWriter
from memwrite_specs.runner import hold

from memwrite.errors import IncompatiblePair, PluginNotFound
from memwrite.plugins import ReaderPlugin, WriterPlugin
from memwrite.plugins.builtin.readers import NoParams

HEALTHY = Pair(WRITERS["prefix"], READERS["prefix"])


def made(body, examples: int = 50) -> Law:
    return Law("made", body, examples, lambda case: None)


def test_a_failure_says_law_statement_pair_values_and_how_to_repeat_it() -> None:
    mutant = MUTANTS["leaks-the-neighbour"]
    why = hold(mutant.pair, LAWS[mutant.law], repeat="memwrite check me").why
    assert why.startswith("leaks-the-neighbour + prefix on tiny breaks the law 'batch-invariance'")
    assert "A row's state and logits are those of its context alone" in why
    assert "the state of row 0 ('memory'): differs by up to" in why
    assert "first = [[0], [0]]" in why  # the smallest of its kind
    assert why.endswith("repeat: memwrite check me")


def test_the_smallest_example_is_reported() -> None:
    def law(case) -> None:
        """No number is above 9."""
        case.require(case.draw("number", st.integers(0, 1000)) <= 9, "it is")

    result = hold(HEALTHY, made(law))
    assert result.outcome == "broken"
    assert result.example == {"number": "10"}


def test_looking_for_a_smaller_example_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SHRINKING", 0.5)

    def law(case) -> None:
        """Lists are short, and it takes long to say so."""
        items = case.draw("items", st.lists(st.integers(0, 10**9), min_size=20, max_size=60))
        time.sleep(0.02)
        case.require(sum(items) < 10, "the sum is large")

    begun = time.monotonic()
    assert hold(HEALTHY, made(law)).outcome == "broken"
    assert time.monotonic() - begun < 5


def test_a_law_that_never_ends_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PATIENCE", 0.3)

    def law(case) -> None:
        """It ends."""
        case.draw("number", st.integers(0, 9))
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    result = hold(HEALTHY, made(law))
    assert result.outcome == "broken"
    assert "no end within" in result.why
    assert result.seconds < 3


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda: os._exit(0), "another process ended without an answer"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "another process ended without an answer"),
        (lambda: sys.exit(0), "another process ended without an answer"),
        (lambda: time.sleep(60), "no answer within"),
    ],
    ids=["exit", "crash", "sys-exit", "hang"],
)
def test_a_writer_that_ends_or_holds_up_the_process_is_broken(
    monkeypatch: pytest.MonkeyPatch, end, words: str
) -> None:
    """By the first law already, and this process goes on."""
    monkeypatch.setattr(search, "PATIENCE", 1.0)

    class Ends(BagWriter):
        def write(self, state, context, /):
            end()
            return super().write(state, context)

    pair = Pair(replace(WRITERS["prefix"], name=f"ends-{id(end)}", build=Ends), READERS["prefix"])
    result = hold(pair, LAWS["contract"])
    assert result.outcome == "broken"
    assert words in result.why


def test_a_law_in_which_the_program_is_ended_is_broken() -> None:
    def law(case) -> None:
        """It goes on."""
        sys.exit(0)

    assert "it ends the program" in hold(HEALTHY, made(law, examples=1)).why
    assert "it ends the program" in hold(HEALTHY, made(law)).why


def test_errors_that_cannot_be_shown_are_reported() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def law(case) -> None:
        """It says what is wrong."""
        raise Unspeakable

    def surrogate(case) -> None:
        """It says what is wrong."""
        raise ValueError("\udc80")

    assert "its message cannot be shown" in hold(HEALTHY, made(law)).why
    assert hold(HEALTHY, made(surrogate)).why.encode()


def test_a_failure_that_does_not_come_back_is_one_all_the_same() -> None:
    calls = []

    def law(case) -> None:
        """It never fails."""
        case.draw("number", st.integers(0, 9))
        calls.append(1)
        case.require(len(calls) != 3, "the third time it did")

    assert hold(HEALTHY, made(law)).outcome == "broken"


def test_the_seed_decides_what_is_drawn() -> None:
    def drawn(start: int) -> list[int]:
        found = []

        def law(case) -> None:
            """Anything goes."""
            found.append(case.draw("number", st.integers(0, 10**6)))

        hold(HEALTHY, made(law), start=start)
        return found

    assert drawn(1) == drawn(1) != drawn(2)


def test_outcomes() -> None:
    law = LAWS["online-is-offline"]
    assert hold(HEALTHY, law).outcome == "n/a"
    mutant = MUTANTS["writes-nothing"]
    gap = hold(mutant.pair, LAWS["sensitivity"], "it is meant to")
    assert (gap.outcome, gap.why) == ("gap", "it is meant to")
    closed = hold(HEALTHY, LAWS["sensitivity"], "it was once so")
    assert closed.outcome == "broken"
    assert "drop the gap" in closed.why


def test_a_gap_needs_a_law_and_a_reason() -> None:
    with pytest.raises(ValueError, match=r"'sensitivty' names no law \(did you mean 'sensitivity'"):
        bind(HEALTHY, {"sensitivty": "a reason"})
    with pytest.raises(ValueError, match="'sensitivity' needs a reason"):
        bind(HEALTHY, {"sensitivity": " "})


def test_pairs_are_made_of_what_is_given() -> None:
    assert pair_of(WRITERS["matrix"]).reader is READERS["matrix"]
    assert pair_of(READERS["lowrank"] or None).writer is WRITERS["lowrank"]
    assert pair_of(WRITERS["prefix"], "prefix").reader.name == "prefix"
    with pytest.raises(PluginNotFound, match="no installed reader is called 'prefx'"):
        pair_of(WRITERS["prefix"], "prefx")
    with pytest.raises(IncompatiblePair, match="emits 'matrix' states"):
        pair_of(WRITERS["matrix"], READERS["prefix"])
    own = WriterPlugin(
        api=2, name="own", summary="", config=NoParams, build=lambda *_: None, emits="own"
    )  # type: ignore[arg-type]
    with pytest.raises(PluginNotFound, match="'own' states, of which the kit has no reader"):
        pair_of(own)
    reader = ReaderPlugin(
        api=2,
        name="own",
        summary="",
        config=NoParams,
        build=lambda *_: None,
        accepts=frozenset({"own"}),
    )  # type: ignore[arg-type]
    with pytest.raises(IncompatiblePair, match="of which the kit has no writer"):
        pair_of(reader)


def test_a_witness_knows_nothing_of_what_happens_after_it_was_asked_in() -> None:
    import torch

    said = ["before"]
    with Witness(lambda _: {"n": torch.tensor(len(said))}) as witness:
        said.append("after")
        assert int(witness.ask()["n"]) == 1


def test_a_witness_that_hangs_or_dies_is_an_answer() -> None:
    import os

    with (
        Witness(lambda _: time.sleep(60) or {}, seconds=0.2) as witness,
        pytest.raises(LawBroken, match="no answer within"),
    ):
        witness.ask()
    with Witness(lambda _: os._exit(3)) as witness, pytest.raises(LawBroken, match="ended without"):
        witness.ask()
    with (
        Witness(lambda _: {}[0]) as witness,
        pytest.raises(LawBroken, match="in another process: KeyError"),
    ):
        witness.ask()


def test_knowledge_is_the_same_until_something_is_learnt() -> None:
    memory = HEALTHY.memory()
    before = knowledge(memory.writer)
    assert knowledge(memory.writer) == before
    memory.writer.learnt = {"a": [1, (2, {3})]}
    after = knowledge(memory.writer)
    assert {path for path in after if path not in before}
    memory.writer.learnt["a"][1][1].add(4)
    assert knowledge(memory.writer) != after


def test_pytest_prints_how_many_laws_ran(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "test_mine.py").write_text(
        "from memwrite_specs import conformance\n"
        "from memwrite_specs.mutants import MUTANTS\n"
        "mutant = MUTANTS['writes-nothing'].pair\n"
        "@conformance(mutant, gaps={'sensitivity': 'it never writes'})\n"
        "def test_it(law): law()\n"
        "@conformance(MUTANTS['keeps-a-note-on-the-state'].pair)\n"
        "def test_that(law): law()\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2",
             "-k", "sensitivity or contract or streaming"]  # fmt: skip
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert "memwrite laws: 2 held, 2 n/a, 1 gap, 1 broken; 2 pairs" in done.stdout
    assert "carries more than tensors: ['note', 'spec', 'tensors']" in done.stdout
    assert "MEMWRITE_SPECS_SEED=0 pytest 'test_mine.py::test_that[contract]'" in done.stdout
    assert done.returncode == 1
