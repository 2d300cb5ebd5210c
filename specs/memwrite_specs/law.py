"""What a law is: a plain function whose docstring is the specification."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from memwrite_specs.case import Case

#: held; n/a: it does not bind this pair; gap: broken, as declared with a reason; broken.
Outcome = Literal["held", "n/a", "gap", "broken"]


class LawBroken(AssertionError):
    """What was found does not agree with the law; the message is one sentence for people."""


@dataclass(frozen=True)
class Law:
    """A law.

    Attributes:
        name: words joined by hyphens.
        body: holds the case it is given to the law, raising `LawBroken` (or whatever the plugin raises).
        examples: how many cases are drawn; 1 for a law that draws none.
        binds: why the law does not bind this pair; None if it does.
    """

    name: str
    body: Callable[[Case], None]
    examples: int
    binds: Callable[[Case], str | None]

    @property
    def statement(self) -> str:
        """The law in words: the first paragraph of its docstring."""
        text = inspect.cleandoc(self.body.__doc__ or "")
        return " ".join(text.split("\n\n")[0].split())


#: Every law, in the order in which they are reported.
LAWS: dict[str, Law] = {}


def _always(case: Case) -> None:
    return None


def law(
    examples: int = 10, binds: Callable[[Case], str | None] = _always
) -> Callable[[Callable[[Case], None]], Law]:
    """Make a function a law of the same name, with hyphens; see `Law`."""

    def made(body: Callable[[Case], None]) -> Law:
        found = Law(body.__name__.replace("_", "-"), body, examples, binds)
        assert found.name not in LAWS
        assert found.statement
        LAWS[found.name] = found
        return found

    return made
