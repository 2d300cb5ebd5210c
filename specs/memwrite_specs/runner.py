"""Hold a pair to a law: draw cases, keep the smallest failure, report it for people."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, seed
from hypothesis import strategies as st

from memwrite_specs import hypothesis_driver as limits
from memwrite_specs.case import Case
from memwrite_specs.forked import NoAnswer, Witness
from memwrite_specs.hypothesis_driver import EnoughShrinking, NoEnd, Search, patience, quiet
from memwrite_specs.law import Law, LawBroken, Outcome
from memwrite_specs.pair import Pair


@dataclass(frozen=True)
class Result:
    """What became of one law.

    Attributes:
        pair: that was held to the law.
        law: its name.
        outcome: see `Outcome`.
        why: of "n/a" and "gap" the reason, of "broken" the report.
        example: drawn values of the smallest failure, by name.
        seconds: it took.
    """

    pair: str
    law: str
    outcome: Outcome
    why: str = ""
    example: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


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
        lives(pair)
        with patience():
            reason = law.binds(Case(pair, start))
    except NoEnd:
        return result("broken", report(pair, law, _too_long(), {}, repeat))
    except Exception as error:
        return result("broken", report(pair, law, error, {}, repeat))
    if reason is not None:
        return result("n/a", reason)
    search = tried(pair, law, start)
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


def tried(pair: Pair, law: Law, start: int) -> Search:
    """The smallest failure that was found, without an error if there was none."""
    search = Search()
    first = Case(pair, start)
    if law.examples == 1:
        try:
            _tried_once(law, first)
        except Exception as error:
            search.error = error
            search.drawn = {name: str(value) for name, value in first.drawn.items()}
        return search

    @quiet(law.examples)
    @seed(start)
    @given(st.data())
    def attempt(data: Any) -> None:
        search.limit()
        case = Case(pair, start, data.draw)
        if search.error is None:
            case.memory = first.memory
        try:
            _tried_once(law, case)
        except Exception as error:
            search.note(error, case.drawn)
            if isinstance(error, _TookTooLong):  # to look for a smaller one would take longer
                raise EnoughShrinking from None
            raise

    try:
        attempt()
    except EnoughShrinking:
        pass
    except Exception as error:
        # Also where a failure does not come back, which hypothesis calls flaky: it is one all the same.
        search.error = search.error or error
    return search


class _TookTooLong(LawBroken):
    """Nobody waits for a smaller example of this."""


def _too_long() -> _TookTooLong:
    return _TookTooLong(f"no end within {limits.PATIENCE:.0f} seconds")


def _tried_once(law: Law, case: Case) -> None:
    try:
        with patience():
            law.body(case)
    except NoEnd:
        raise _too_long() from None
    except SystemExit as error:
        raise LawBroken(f"it ends the program (SystemExit: {error})") from None


_fates: dict[str, NoAnswer | None] = {}


def lives(pair: Pair) -> None:
    """Write and read once in another process, before any law is tried in this one; once for each pair.

    Raises:
        NoAnswer: that process ended, or did not come to an end.
    """
    key = repr(pair)
    if key not in _fates:
        _fates[key] = None
        try:
            with Witness(lambda _: _tried_alone(pair), seconds=limits.PATIENCE) as witness:
                witness.ask()
        except NoAnswer as error:
            _fates[key] = error
        except LawBroken:
            pass  # the laws will say so
    if (fate := _fates[key]) is not None:
        raise fate


def _tried_alone(pair: Pair) -> dict[str, Any]:
    case = Case(pair, 0)
    tokens = case.tokens([case.secret(8), case.secret(3)])
    case.read(case.write(tokens), case.question(2))
    return {}


def report(pair: Pair, law: Law, error: Exception, drawn: Mapping[str, str], repeat: str) -> str:
    """A failure for people: law, statement, what was found, the drawn values, the command that repeats it."""
    lines = [f"{pair} breaks the law '{law.name}'", f"  law:    {law.statement}"]
    lines.append(f"  found:  {_found(error)}")
    lines += [f"  with:   {name} = {value}" for name, value in drawn.items()]
    if repeat:
        lines.append(f"  repeat: {repeat}")
    return "\n".join(lines)


def _found(error: Exception) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its message cannot be shown)"
    text = text.encode("utf-8", "backslashreplace").decode()
    if isinstance(error, LawBroken):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{where}"
