"""How a law is held: outcomes, reports that people can read, and limits of time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import strategies as st
from memwrite_specs import LAWS, pytest_binding
from memwrite_specs import hypothesis_driver as search
from memwrite_specs.forked import ForkedProcess
from memwrite_specs.law import Law, LawBroken, NotRun
from memwrite_specs.mutants import MUTANTS
from memwrite_specs.object_digest import object_digest
from memwrite_specs.pair import Pair
from memwrite_specs.pytest_binding import bind, pair_of
from memwrite_specs.reference import READERS, WRITERS, BagWriter, WindowWriter
from memwrite_specs.runner import hold

from memwrite.cli.main import main
from memwrite.errors import (
    ConfigError,
    IncompatiblePair,
    PluginBroken,
    PluginConflict,
    PluginNotFound,
    PositionsExceeded,
)
from memwrite.plugins import ReaderPlugin, WriterPlugin, register, registry
from memwrite.plugins.builtin.readers import NoParams
from memwrite.plugins.table import Owner
from memwrite.protocols import KeyValues, WriteOutput
from memwrite.state import MemoryState

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
    monkeypatch.setattr(search, "SHRINK_SECONDS", 0.5)

    def law(case) -> None:
        """Lists are short, and it takes long to say so."""
        items = case.draw("items", st.lists(st.integers(0, 10**9), min_size=20, max_size=60))
        time.sleep(0.02)
        case.require(sum(items) < 10, "the sum is large")

    begun = time.monotonic()
    assert hold(HEALTHY, made(law)).outcome == "broken"
    assert time.monotonic() - begun < 5


def test_a_law_that_never_ends_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CASE_SECONDS", 0.3)

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
    monkeypatch.setattr(search, "CASE_SECONDS", 1.0)

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
    with pytest.raises(
        ConfigError, match=r"'sensitivty' names no law \(did you mean 'sensitivity'"
    ):
        bind(HEALTHY, {"sensitivty": "a reason"})
    with pytest.raises(ConfigError, match="'sensitivity' needs a reason"):
        bind(HEALTHY, {"sensitivity": " "})


@pytest.mark.parametrize(
    "law",
    ["information-bound", "context-removal", "nothing-left-behind", "no-side-effects", "purity"],
)
def test_a_gap_never_hides_a_leak(law: str) -> None:
    """Neither one that a test declares nor one that the plugin does."""
    with pytest.raises(ConfigError, match=f"the gap '{law}' cannot be declared"):
        bind(HEALTHY, {law: "it is meant to"})
    plugin = replace(WRITERS["prefix"], gaps={law: "it is meant to"})
    with pytest.raises(ConfigError, match="lets the context get around the state"):
        bind(Pair(plugin, READERS["prefix"]))


def test_a_gap_by_a_laws_former_name_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pytest_binding.RENAMED, "sensible", "sensitivity")
    with pytest.warns(DeprecationWarning, match="'sensible' is called 'sensitivity' now"):
        bound = bind(HEALTHY, {"sensible": "it never writes"})
    assert {b.law.name: b.gap for b in bound if b.gap} == {"sensitivity": "it never writes"}
    with (
        pytest.warns(DeprecationWarning, match="'sealed' is called 'no-side-effects' now"),
        pytest.raises(ConfigError, match="cannot be declared"),
    ):
        bind(HEALTHY, {"sealed": "it writes a log"})


class Appending(WindowWriter):
    """Keeps the last keys and values at the positions that they had, so that every write takes new ones."""

    def write(self, state, context, /):
        past = KeyValues(**state.tensors)
        embeddings = self.backbone.embed(context.ids)
        new = self.backbone.forward(embeddings, past=past, use_cache=True).key_values
        last = slice(-self.slots, None)
        tensors = {
            "keys": new.keys[:, :, :, last],
            "values": new.values[:, :, :, last],
            "mask": new.mask[:, last],
            "next_position": state["next_position"] + context.lengths,
        }
        return WriteOutput(MemoryState(self.spec, tensors))


class Full(Appending):
    """Starts behind the last position of the model, so that no context fits."""

    def init(self, batch_size, /):
        empty = super().init(batch_size).tensors
        last = torch.full_like(empty["next_position"], 512)
        return MemoryState(self.spec, {**empty, "next_position": last})


POSITION_LAWS = pytest.mark.parametrize("law", ["finite", "information-bound"])


@POSITION_LAWS
def test_payloads_fit_the_positions_of_the_model(law: str) -> None:
    """A writer that takes new positions with every write is tried on contexts that are short enough."""
    writer = replace(WRITERS["keyvalue"], name="appending", build=Appending)
    result = hold(Pair(writer, READERS["keyvalue"]), LAWS[law])
    assert (result.outcome, result.why) == ("held", "")


@POSITION_LAWS
@pytest.mark.parametrize("gap", [None, "it is long"])
def test_running_out_of_positions_is_neither_broken_nor_a_gap(law: str, gap: str | None) -> None:
    writer = replace(WRITERS["keyvalue"], name="full", build=Full)
    result = hold(Pair(writer, READERS["keyvalue"]), LAWS[law], gap)
    assert result.outcome == "not run"
    assert result.failed
    assert "positions are needed, but the model has only 512" in result.why


def test_a_law_in_another_process_that_runs_out_of_positions_is_not_run() -> None:
    def law(case) -> None:
        """It fits."""

        def answer(_: bytes) -> dict:
            raise PositionsExceeded("513 positions are needed")

        with ForkedProcess(answer) as process:
            process.call()

    result = hold(HEALTHY, made(law, examples=1))
    assert (result.outcome, result.why) == ("not run", "513 positions are needed")


def test_a_law_that_was_not_run_fails_its_test() -> None:
    def law(case) -> None:
        """It fits."""
        raise NotRun("it takes more positions than the model has")

    bound = pytest_binding.BoundLaw(HEALTHY, made(law, examples=1), "it is long")
    with pytest.raises(pytest.fail.Exception, match=r"'made' was not run on .*: it takes more"):
        bound()


def test_after_a_broken_contract_nothing_else_is_tried() -> None:
    """The first test that meets it fails with the report, and the others are skipped."""
    bound = {b.law.name: b for b in bind(MUTANTS["keeps-a-note-on-the-state"].pair)}
    with pytest.raises(pytest.fail.Exception, match="breaks the law 'contract'"):
        bound["purity"]()
    assert bound["purity"].result.outcome == "not run"
    with pytest.raises(pytest.skip.Exception, match="not run: the law 'contract' is broken"):
        bound["finite"]()
    assert bound["finite"].result.seconds == 0
    assert bound["contract"].result.outcome == "broken"


DECLARES_A_LAW = """
from memwrite.plugins import hookimpl
from memwrite_specs.law import law

@law(binds=lambda case: None if case.pair.writer.name == "reference-prefix" else "not its writer")
def half_life(case):
    "What was written long ago counts for less than what was written last."
    case.require(False, "it counts for as much")

@hookimpl
def memwrite_laws():
    return [half_life]
"""


@pytest.fixture
def _half_life() -> Iterator[None]:
    """A law that a module declares."""
    module = types.ModuleType("half_lives")
    exec(DECLARES_A_LAW, vars(module))
    register(module)
    yield
    del registry().laws.entries["half-life"]


@pytest.mark.usefixtures("_half_life")
def test_a_plugin_adds_a_law() -> None:
    """It is bound behind the kit's own, and `memwrite laws` and `memwrite check` know it."""
    bound = {b.law.name: b for b in bind(HEALTHY)}
    assert list(bound) == [*LAWS, "half-life"]
    assert "half-life" not in LAWS
    assert bound["half-life"].hold(0).outcome == "broken"
    assert bind(HEALTHY, {"half-life": "it forgets nothing"})[-1].hold(0).outcome == "gap"
    assert bind(Pair(WRITERS["empty"], READERS["empty"]))[-1].hold(0).outcome == "n/a"
    listed = CliRunner().invoke(main, ["laws", "--json"])
    assert json.loads(listed.stdout)["half-life"].startswith("What was written long ago")
    checked = CliRunner().invoke(main, ["check", "prefix", "--law", "half-life"])
    assert checked.exit_code == 1
    assert "it counts for as much" in checked.stderr


def test_a_plugins_law_that_cannot_be_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner("theirs", "1.0", "theirs")
    declared = registry().laws.entries
    monkeypatch.setitem(declared, "purity", [(LAWS["purity"], owner)])
    with pytest.raises(PluginConflict, match=r"'purity' of theirs 1\.0 has a name that is taken"):
        bind(HEALTHY)
    monkeypatch.delitem(declared, "purity")
    monkeypatch.setitem(declared, "theirs", [(WRITERS["prefix"], owner)])
    with pytest.raises(PluginBroken, match=r"the law 'theirs' of theirs 1\.0 is a WriterPlugin"):
        bind(HEALTHY)


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


def test_a_forked_process_knows_nothing_of_what_happens_afterwards() -> None:
    said = ["before"]
    with ForkedProcess(lambda _: {"n": torch.tensor(len(said))}) as process:
        said.append("after")
        assert int(process.call()["n"]) == 1


def test_a_forked_process_that_hangs_or_dies_is_an_answer() -> None:
    with (
        ForkedProcess(lambda _: time.sleep(60) or {}, seconds=0.2) as process,
        pytest.raises(LawBroken, match="no answer within"),
    ):
        process.call()
    with (
        ForkedProcess(lambda _: os._exit(3)) as process,
        pytest.raises(LawBroken, match="ended without"),
    ):
        process.call()
    with (
        ForkedProcess(lambda _: {}[0]) as process,
        pytest.raises(LawBroken, match="in another process: KeyError"),
    ):
        process.call()


def test_the_digest_is_the_same_until_something_is_learnt() -> None:
    memory = HEALTHY.memory()
    before = object_digest(memory.writer)
    assert object_digest(memory.writer) == before
    memory.writer.learnt = {"a": [1, (2, {3})]}
    after = object_digest(memory.writer)
    assert {path for path in after if path not in before}
    memory.writer.learnt["a"][1][1].add(4)
    assert object_digest(memory.writer) != after


def test_pytest_prints_how_many_laws_ran(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from memwrite_specs import conformance\n"
        "from memwrite_specs.mutants import MUTANTS\n"
        "mutant = MUTANTS['writes-nothing'].pair\n"
        "@conformance(mutant, gaps={'sensitivity': 'it never writes'})\n"
        "def test_it(law): law()\n"
        "@conformance(MUTANTS['keeps-a-note-on-the-state'].pair)\n"
        "def test_that(law): law()\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1",
             "-k", "sensitivity or contract or streaming"]  # fmt: skip
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert "memwrite laws: 1 held, 1 n/a, 1 gap, 2 not run, 1 broken; 2 pairs" in done.stdout
    assert "carries more than tensors: ['note', 'spec', 'tensors']" in done.stdout
    assert "MEMWRITE_SPECS_SEED=0 pytest 'test_mine.py::test_that[contract]'" in done.stdout
    assert done.returncode == 1
