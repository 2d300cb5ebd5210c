"""Hold a pair to a law: draw cases, keep the smallest failure, report it for people."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, seed
from hypothesis import strategies as st

from memwrite.errors import PositionsExceeded
from memwrite_specs import hypothesis_driver as limits
from memwrite_specs.case import Case
from memwrite_specs.forked import ForkedProcess, NoReply
from memwrite_specs.hypothesis_driver import (
    CaseTimeout,
    FailureSearch,
    StopShrinking,
    quiet,
    time_limit,
)
from memwrite_specs.law import Law, LawBroken, NotRun, Outcome
from memwrite_specs.pair import Pair


@dataclass(frozen=True)
class Result:
    """The result of holding a pair to one law.

    Attributes:
        pair: the pair that was held to the law.
        law: the law's name.
        outcome: see `Outcome`.
        why: the reason of "n/a", "gap" and "not run"; the report of "broken".
        example: the drawn values of the smallest failure, by name.
        seconds: how long it took.
    """

    pair: str
    law: str
    outcome: Outcome
    why: str = ""
    example: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Say whether the law is broken or was not run: a pair of which nothing is known is not green."""
        return self.outcome in ("broken", "not run")


def hold(
    pair: Pair, law: Law, gap: str | None = None, *, start: int = 0, repeat: str = ""
) -> Result:
    """Hold `pair` to `law`.

    Args:
        pair: a writer and a reader.
        law: one of `LAWS`.
        gap: why the law is known to be broken; a gap that has closed is reported as broken, too.
        start: seed of the cases.
        repeat: the command that does this again, for the report.
    """
    begun = time.monotonic()

    def result(outcome: Outcome, why: str = "", example: Mapping[str, str] | None = None) -> Result:
        seconds = time.monotonic() - begun
        return Result(str(pair), law.name, outcome, why, example or {}, seconds)

    try:
        probe(pair)
        with time_limit():
            reason = law.binds(Case(pair, start))
    except CaseTimeout:
        return result("broken", report(pair, law, _too_slow(), {}, repeat))
    except Exception as error:
        return result("broken", report(pair, law, error, {}, repeat))
    if reason is not None:
        return result("n/a", reason)
    search = failure_of(pair, law, start)
    if isinstance(search.error, (NotRun, PositionsExceeded)):
        return result("not run", _described(search.error))
    if search.error is None:
        if gap is None:
            return result("held")
        return result(
            "broken",
            f"{pair} keeps the law '{law.name}', which is declared as a gap ({gap}): drop the gap",
        )
    if gap is not None:
        return result("gap", gap)
    return result("broken", report(pair, law, search.error, search.drawn, repeat), search.drawn)


def failure_of(pair: Pair, law: Law, start: int) -> FailureSearch:
    """Search for a failure, and return the smallest one; without an error if there is none."""
    search = FailureSearch()
    first = Case(pair, start)
    if law.examples == 1:
        try:
            _run_case(law, first)
        except Exception as error:
            search.error = error
            search.drawn = {name: str(value) for name, value in first.drawn.items()}
        return search

    @quiet(law.examples)
    @seed(start)
    @given(st.data())
    def attempt(data: Any) -> None:
        search.check_time()
        case = Case(pair, start, data.draw)
        if search.error is None:
            case.memory = first.memory
        try:
            _run_case(law, case)
        except (NotRun, PositionsExceeded) as error:
            search.error = search.error or error
            raise StopShrinking from None
        except Exception as error:
            search.record(error, case.drawn)
            if isinstance(error, _TooSlow):  # to look for a smaller one would take longer
                raise StopShrinking from None
            raise

    try:
        attempt()
    except StopShrinking:
        pass
    except Exception as error:
        # Also where a failure does not come back, which hypothesis calls flaky: it is one all the same.
        search.error = search.error or error
    return search


class _TooSlow(LawBroken):
    """A case took too long; no smaller one is looked for."""


def _too_slow() -> _TooSlow:
    return _TooSlow(f"no end within {limits.CASE_SECONDS:.0f} seconds")


def _run_case(law: Law, case: Case) -> None:
    try:
        with time_limit():
            law.body(case)
    except CaseTimeout:
        raise _too_slow() from None
    except SystemExit as error:
        raise LawBroken(f"it ends the program (SystemExit: {error})") from None


_probes: dict[str, NoReply | None] = {}


def probe(pair: Pair) -> None:
    """Write and read once in another process, before any law is tried in this one; once for each pair.

    Raises:
        NoReply: that process ended, or did not come to an end.
    """
    key = repr(pair)
    if key not in _probes:
        _probes[key] = None
        try:
            with ForkedProcess(
                lambda _: _write_and_read(pair), seconds=limits.CASE_SECONDS
            ) as process:
                process.call()
        except NoReply as error:
            _probes[key] = error
        except (LawBroken, NotRun):
            pass  # the laws will say so
    if (failure := _probes[key]) is not None:
        raise failure


def _write_and_read(pair: Pair) -> dict[str, Any]:
    case = Case(pair, 0)
    tokens = case.tokens([case.secret(8), case.secret(3)])
    case.read(case.write(tokens), case.question(2))
    return {}


def report(pair: Pair, law: Law, error: Exception, drawn: Mapping[str, str], repeat: str) -> str:
    """Describe a failure: the law and its statement, what was found, the drawn values, the command that repeats it."""
    lines = [f"{pair} breaks the law '{law.name}'", f"  law:    {law.statement}"]
    lines.append(f"  found:  {_described(error)}")
    lines += [f"  with:   {name} = {value}" for name, value in drawn.items()]
    if repeat:
        lines.append(f"  repeat: {repeat}")
    return "\n".join(lines)


def _described(error: Exception) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its message cannot be shown)"
    text = text.encode("utf-8", "backslashreplace").decode()
    if isinstance(error, (LawBroken, NotRun, PositionsExceeded)):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{where}"
