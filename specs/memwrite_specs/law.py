"""What a law is: a plain function whose docstring is the specification."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from memwrite_specs.case import Case

#: held; n/a: it does not bind this pair; gap: broken, as declared with a reason; not run: it could not be tried, so that
#: nothing is known; broken.
Outcome = Literal["held", "n/a", "gap", "not run", "broken"]
#: In the order in which they are counted for people.
OUTCOMES: tuple[Outcome, ...] = ("held", "n/a", "gap", "not run", "broken")


class LawBroken(AssertionError):
    """The pair breaks the law; the message is one sentence that says how."""


class NotRun(Exception):
    """The law cannot be tried on this pair; the message is one sentence that says why."""


@dataclass(frozen=True)
class Law:
    """A demand on every pair, or on those that it binds.

    Attributes:
        name: words joined by hyphens.
        body: holds the case it is given to the law, raising `LawBroken` (or whatever the plugin raises).
        examples: how many cases are drawn; 1 for a law that draws none.
        binds: why the law does not bind this pair; None if it does.
        leakage: whether a break means that the context gets around the state. No gap excuses that.
        pairing: whether it can be broken although writer and reader each keep it with another partner.
    """

    name: str
    body: Callable[[Case], None]
    examples: int
    binds: Callable[[Case], str | None]
    leakage: bool = False
    pairing: bool = False

    @property
    def statement(self) -> str:
        """Return the law in words: the first paragraph of its docstring."""
        text = inspect.cleandoc(self.body.__doc__ or "")
        return " ".join(text.split("\n\n")[0].split())


def _always(case: Case) -> None:
    return None


def law(
    examples: int = 10,
    binds: Callable[[Case], str | None] = _always,
    leakage: bool = False,
    pairing: bool = False,
) -> Callable[[Callable[[Case], None]], Law]:
    """Make a function the law of the same name, with hyphens; see `Law` for the arguments.

    Raises:
        ValueError: the function has no docstring, which would be the law in words.
    """

    def make(body: Callable[[Case], None]) -> Law:
        made = Law(body.__name__.replace("_", "-"), body, examples, binds, leakage, pairing)
        if not made.statement:
            raise ValueError(f"the law '{made.name}' needs a docstring that says what it demands")
        return made

    return make
