"""Sessions of one memory in any order of what can be done with them, against remembered results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memwrite.memory import Memory
from memwrite.session import Session
from memwrite.state import MemoryState, Tokens
from memwrite_specs.case import Case
from memwrite_specs.hypothesis_driver import FailureSearch, StopShrinking, quiet
from memwrite_specs.law import law
from memwrite_specs.laws.shape import grows

MOST, STEPS, RUNS = 3, 8, 8

Step = tuple[str, str]
texts = st.text("abc", min_size=1, max_size=4)
which = st.integers(0, MOST - 1)


@law(examples=1, binds=grows)
def sessions(case: Case) -> None:
    """Sessions know what was said to them and nothing of each other, whatever is done in whatever order: new, write,
    append, fork, save, load, read, reset. What each of them knows is what a fresh memory knows that was told the same."""
    search = FailureSearch()
    try:
        machine = seed(case.seed)(_machine(case, search))
        run_state_machine_as_test(machine, settings=quiet(RUNS, STEPS))
    except StopShrinking:
        pass
    except Exception as error:
        search.error = search.error or error
    if search.error is not None:
        case.drawn.update(search.drawn)
        raise search.error


class _Expected:
    """Computes what a fresh memory knows after the same history, once for each history."""

    def __init__(self, case: Case) -> None:
        self._memory = case.pair.memory()
        self._states: dict[tuple[Step, ...], MemoryState] = {(): self._memory.writer.init(1)}

    def __call__(self, history: tuple[Step, ...]) -> MemoryState:
        if history not in self._states:
            session = Session(self._memory, self(history[:-1]).clone())
            how, text = history[-1]
            _extend(session, self._memory, how, text)
            self._states[history] = session.state.clone()
        return self._states[history]


def _extend(session: Session, memory: Memory, how: str, text: str) -> None:
    if how == "append":
        session.append(text)
        return
    with torch.no_grad():
        session.state = memory.write(Tokens.from_rows([list(text.encode())]), session.state).state


def _machine(case: Case, search: FailureSearch) -> type[RuleBasedStateMachine]:
    expected_state = _Expected(case)

    class Sessions(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            search.check_time()
            # A memory that failed before may be spoilt.
            self.memory = case.memory if search.error is None else case.pair.memory()
            self.steps: list[str] = []
            self.live: list[Session] = [Session(self.memory)]
            self.histories: list[tuple[Step, ...]] = [()]
            self.files: list[tuple[Path, tuple[Step, ...]]] = []
            self.folder = tempfile.TemporaryDirectory()

        def _at(self, index: int) -> int:
            return index % len(self.live)

        def _add(self, session: Session, history: tuple[Step, ...]) -> None:
            self.live.append(session)
            self.histories.append(history)

        def _log(self, step: str) -> None:
            self.steps.append(step)

        @precondition(lambda self: len(self.live) < MOST)
        @rule()
        def new(self) -> None:
            self._log("new session")
            self._add(Session(self.memory), ())

        @rule(index=which, text=texts, how=st.sampled_from(["append", "write"]))
        def extend(self, index: int, text: str, how: str) -> None:
            i = self._at(index)
            self._log(f"{how} {text!r} to session {i}")
            self._guarded(lambda: _extend(self.live[i], self.memory, how, text))
            self.histories[i] += ((how, text),)

        @precondition(lambda self: len(self.live) < MOST)
        @rule(index=which)
        def fork(self, index: int) -> None:
            i = self._at(index)
            self._log(f"fork session {i}")
            self._add(self.live[i].fork(), self.histories[i])

        @rule(index=which)
        def save(self, index: int) -> None:
            i = self._at(index)
            path = Path(self.folder.name) / f"{len(self.files)}.safetensors"
            self._log(f"save session {i} as file {len(self.files)}")
            self._guarded(lambda: self.live[i].save(path))
            self.files.append((path, self.histories[i]))

        @precondition(lambda self: self.files)
        @rule(index=which, file=st.integers(0, STEPS))
        def load(self, index: int, file: int) -> None:
            i, n = self._at(index), file % len(self.files)
            self._log(f"load file {n} into session {i}")
            self._guarded(lambda: self.live[i].load(self.files[n][0]))
            self.histories[i] = self.files[n][1]

        @rule(index=which)
        def reset(self, index: int) -> None:
            i = self._at(index)
            self._log(f"reset session {i}")
            self._guarded(self.live[i].reset)
            self.histories[i] = ()

        @rule(index=which)
        def read(self, index: int) -> None:
            i = self._at(index)
            self._log(f"read session {i}")
            query = Tokens.from_rows([[72, 105]])
            with torch.no_grad():
                logits = self.memory.read(self.live[i].state, query).logits
            expected = case.read(expected_state(self.histories[i]), query)
            self._guarded(lambda: case.same(f"the logits of session {i}", logits, expected))

        @invariant()
        def each_knows_its_own(self) -> None:
            self._guarded(self._compare)

        def _compare(self) -> None:
            for i, (session, history) in enumerate(zip(self.live, self.histories, strict=True)):
                case.same(f"the state of session {i}", session.state, expected_state(history))

        def _guarded(self, check: Callable[[], None]) -> None:
            try:
                check()
            except Exception as error:
                search.record(error, {"steps": "; ".join(self.steps)})
                raise

        def teardown(self) -> None:
            self.folder.cleanup()

    return Sessions
